#!/usr/bin/env python
"""Evaluate object detection on coded images: PASCAL VOC's mAP, or COCO's average precision (AP) of boxes.

examples:
  python scripts/eval_detection.py --voc VOCdevkit/VOC2007 --split test --codec ugicm --quality 0.3
  python scripts/eval_detection.py --voc VOCdevkit/VOC2012 --split val --all-points --detectors retinanet_resnet50_fpn
  python scripts/eval_detection.py --coco A.json -d coco/val2017 --detectors fasterrcnn_resnet50_fpn=W.pth

Labels of detectors are matched with the classes of the dataset by name, also between COCO and VOC.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ugicm.arguments import ArgumentParser, run_command

if TYPE_CHECKING:
    from ugicm.evaluation.tasks.base import Task


def argument_parser() -> ArgumentParser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = ArgumentParser(description=__doc__)
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--voc", metavar="DIR", help="a year of VOCdevkit: JPEGImages, Annotations, ImageSets")
    truth.add_argument(
        "--coco", metavar="JSON", help="COCO ground truth of the images in -d. Scores boxes only; for masks see "
        "instance_segmentation/test.py",
    )  # fmt: skip
    parser.add_argument("-d", "--dataset", metavar="DIR", help="original images (default with --voc: JPEGImages)")
    parser.add_argument("--split", default="test", help="split of VOC (default: %(default)s)")
    parser.add_argument("--all-points", action="store_true", help="average precision of VOC 2010 (default: 2007)")
    parser.add_argument(
        "--detectors", nargs="+", default=["fasterrcnn_resnet50_fpn"], metavar="NAME[=PATH]",
        help="torchvision detectors; PATH: local weights, :classes=FILE: their class names (default: %(default)s)",
    )  # fmt: skip
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def build(args: argparse.Namespace, device: str) -> Task:
    """Return the task of the options, with the detectors on a device."""
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks.base import Task
    from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth
    from ugicm.evaluation.tasks.detectors import load_detector
    from ugicm.evaluation.tasks.voc import VocEvaluator, VocTruth

    if args.coco and not args.dataset:
        raise ConfigError("--coco needs the folder of the images: pass -d DIR")
    truth = CocoTruth(args.coco) if args.coco else VocTruth(args.voc, args.split)
    detectors = [load_detector(text, device) for text in args.detectors]
    if args.coco:
        evaluators = [CocoEvaluator(detector, truth, ["bbox"]) for detector in detectors]
    else:
        evaluators = [VocEvaluator(detector, truth, not args.all_points) for detector in detectors]
    return Task("detection", truth.items(args.dataset), evaluators, truth=truth.digest)


def main(argv: Sequence[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    from ugicm.evaluation.tasks.command import evaluate

    return evaluate(build, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
