#!/usr/bin/env python
"""Evaluate semantic segmentation on coded images: mean intersection over union (mIoU) and pixel accuracy.

examples:
  python scripts/eval_semantic.py --voc VOCdevkit/VOC2012 --codec ugicm --quality 0.3
  python scripts/eval_semantic.py -d images --masks masks --decoded out --segmenters fcn_resnet50=W.pth

Masks are palette or gray images of class indices; pixels of index 255 are not scored.
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
    parser.add_argument("--voc", metavar="DIR", help="a year of VOCdevkit: JPEGImages, SegmentationClass, ImageSets")
    parser.add_argument("--split", default="val", help="split of VOC (default: %(default)s)")
    parser.add_argument("-d", "--dataset", metavar="DIR", help="original images of another dataset")
    parser.add_argument("--masks", metavar="DIR", help="its masks, with the names of the images")
    parser.add_argument(
        "--segmenters", nargs="+", default=["deeplabv3_resnet50"], metavar="NAME[=PATH]",
        help="torchvision segmentation networks; PATH: local weights (default: %(default)s)",
    )  # fmt: skip
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def build(args: argparse.Namespace, device: str) -> Task:
    """Return the task of the options, with the segmentation networks on a device."""
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks import semantic_segmentation as task
    from ugicm.evaluation.tasks.base import Task

    if bool(args.voc) == bool(args.dataset or args.masks) or bool(args.dataset) != bool(args.masks):
        raise ConfigError("no dataset: pass --voc DIR, or -d DIR and --masks DIR")
    items = task.voc_items(args.voc, args.split) if args.voc else task.paired_items(args.dataset, args.masks)
    evaluators = [task.SegmentationEvaluator(task.load_segmenter(text, device)) for text in args.segmenters]
    return Task("semantic segmentation", items, evaluators)


def main(argv: Sequence[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    from ugicm.evaluation.tasks.command import evaluate

    return evaluate(build, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
