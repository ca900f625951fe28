#!/usr/bin/env python
"""Evaluate instance segmentation on coded images: COCO's average precision (AP) of boxes and masks.

examples:
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json                              the originals
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json --codec ugicm --quality 0.3
  python instance_segmentation/test.py -d out/machine --annotations A.json --detectors maskrcnn_resnet50_fpn=W.pth
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json --codec webp --quality 60

Images are matched by the file names in the annotations, with any extension.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ugicm.arguments import ArgumentParser, run_command


def argument_parser() -> ArgumentParser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", required=True, metavar="DIR", help="original images")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO ground truth")
    parser.add_argument(
        "--detectors", nargs="+", default=["maskrcnn_resnet50_fpn"], metavar="NAME[=PATH]",
        help="torchvision detectors; PATH: local weights, :classes=FILE: their class names (default: %(default)s)",
    )  # fmt: skip
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    from ugicm.arguments import pick_device
    from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth
    from ugicm.evaluation.tasks.command import Task, evaluate
    from ugicm.evaluation.tasks.detectors import load_detector

    truth = CocoTruth(args.annotations)
    device = pick_device(args.device)
    evaluators = [CocoEvaluator(load_detector(text, device), truth) for text in args.detectors]
    task = Task("instance segmentation", truth.items(args.dataset), evaluators, truth=truth.digest)
    return evaluate(task, args, device)


if __name__ == "__main__":
    sys.exit(run_command(main))
