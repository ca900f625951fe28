"""Task scores: how well networks that never saw a codec work on its images.

``base``            the evaluator protocol and the loop that feeds it
``sources``         where the images under test come from: a folder, streams, or a codec
``labels``          image folders with class labels
``judges``          classifiers by name or local weights; ``zeroshot`` makes one of a CLIP model
``classification``  top-1, top-5, agreement
``detectors``       torchvision detectors by name or local weights
``detection``       COCO box and mask AP, VOC mAP
``segmentation``    mean intersection over union
``fidelity``        PSNR, MS-SSIM, LPIPS: the human side
"""
