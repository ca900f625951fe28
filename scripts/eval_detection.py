#!/usr/bin/env python
"""How well detectors find objects in images after a codec: PASCAL VOC's mAP, or COCO's average precision of boxes.

  python scripts/eval_detection.py --voc VOCdevkit/VOC2007 --split test --codec ugicm --quality 0.3
  python scripts/eval_detection.py --voc VOCdevkit/VOC2012 --split val --all-points --detector retinanet_resnet50_fpn
  python scripts/eval_detection.py --coco A.json -d coco/val2017 --detector fasterrcnn_resnet50_fpn=W.pth

Detectors trained on COCO are asked for VOC's twenty classes by name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ugicm.arguments import Parser, guarded


def parser() -> Parser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = Parser(description=__doc__)
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--voc", metavar="DIR", help="a year of VOCdevkit: JPEGImages, Annotations, ImageSets")
    truth.add_argument(
        "--coco", metavar="JSON", help="COCO ground truth for the images in -d: boxes alone, whatever the detector "
        "finds; instance_segmentation/test.py scores the masks as well",
    )  # fmt: skip
    parser.add_argument("-d", "--dataset", metavar="DIR", help="the images (with --voc: JPEGImages)")
    parser.add_argument("--split", default="test", help="of VOC (default: %(default)s)")
    parser.add_argument("--all-points", action="store_true", help="VOC 2010's average precision, not 2007's 11 points")
    parser.add_argument(
        "--detector", default="fasterrcnn_resnet50_fpn", metavar="NAME[=PATH]",
        help="a torchvision detector (default: %(default)s)",
    )  # fmt: skip
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from ugicm.arguments import pick_device
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth, VocEvaluator, VocTruth
    from ugicm.evaluation.tasks.command import score
    from ugicm.evaluation.tasks.detectors import load_detector

    device = pick_device(args.device)
    if args.coco:
        if not args.dataset:
            raise ConfigError("--coco needs the folder of its images: -d DIR")
        truth = CocoTruth(args.coco)
        evaluator = CocoEvaluator(load_detector(args.detector, device), truth, kinds=["bbox"])
        return score(
            args, "detection", truth.items(args.dataset), [evaluator], device, check=truth.check_size,
            truth=truth.digest,
        )  # fmt: skip
    truth = VocTruth(args.voc, args.split)
    evaluator = VocEvaluator(load_detector(args.detector, device), truth, not args.all_points)
    return score(args, "detection", truth.items(args.dataset), [evaluator], device, truth=truth.digest)


if __name__ == "__main__":
    sys.exit(guarded(main))
