"""Task scores: how well networks perform on coded images that they were not trained on.

``base``                   the evaluator interface and the evaluation loop
``command``                the run that the task scripts share
``cluster``                the same on a Ray cluster
``sources``                the images under test: originals, decoded images, bitstreams, or a codec
``labels``                 image folders with class labels
``classification``         top-1, top-5, agreement, log-loss
``classifiers``            classifiers of torchvision and timm, ``zero_shot``: those of open_clip
``detectors``              torchvision detectors
``coco``                   COCO box and mask AP, ``coco_truth``: its ground truth, ``agreement``: that of detections
``voc``                    PASCAL VOC mAP
``edges``                  agreement of an edge detector with the originals
``semantic_segmentation``  mean intersection over union
``fidelity``               PSNR, MS-SSIM, LPIPS
``hub``                    networks of torchvision with pretrained or local weights, and of functions in Python files
"""

from ugicm.extras import require_packages

require_packages("eval", __name__, "torchvision")
