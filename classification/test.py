#!/usr/bin/env python
"""Evaluate image classifiers on coded images: top-1, top-5, log-loss, and agreement with the originals.

examples:
  python classification/test.py -d imagenet/val                                  the originals, ResNet-101
  python classification/test.py -d imagenet/val --codec ugicm --quality 0.3      the shipped model
  python classification/test.py -d imagenet/val --decoded out/machine --classifiers resnet101 timm/convnext_tiny
  python classification/test.py -d val --bitstreams out/bitstream --preference 1 --classifiers open_clip/ViT-B-32=W.pt
  python classification/test.py -d imagenet/val --codec avif --quality 40

The dataset is a folder per class, or any folder with a label file. Each classifier uses its own preprocessing.
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
    parser.add_argument("-d", "--dataset", required=True, metavar="DIR", help="original images")
    parser.add_argument(
        "--labels", metavar="FILE", help="csv, or ImageNet's val.txt, LOC_val_solution.csv or development kit "
        "(default: DIR/labels.csv, else the names of the class folders)",
    )  # fmt: skip
    parser.add_argument(
        "--classifiers", nargs="+", default=["resnet101"], metavar="NAME[=PATH]",
        help="torchvision's NAME, timm/NAME, zero-shot open_clip/NAME, or FILE.py:function that returns one; "
        ":normalize=none, :resize=227 and :crop=227 change the preprocessing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-agreement", action="store_true", help="do not evaluate the originals for agreement")
    add_source_arguments(parser)
    return parser


def build(args: argparse.Namespace, device: str) -> Task:
    """Return the task of the options, with the classifiers on a device."""
    from ugicm.evaluation.tasks.base import Task
    from ugicm.evaluation.tasks.classification import ClassificationEvaluator
    from ugicm.evaluation.tasks.classifiers import load_classifier
    from ugicm.evaluation.tasks.labels import check_classes, labeled_images

    labeled = labeled_images(args.dataset, args.labels)
    classifiers = [load_classifier(text, device) for text in args.classifiers]
    for classifier in classifiers:
        check_classes(labeled, classifier.classes, classifier.name)
    targets = {item.key: item.target for item in labeled.items}
    evaluators = [ClassificationEvaluator(classifier, targets) for classifier in classifiers]
    references = []
    if not args.no_agreement and (args.decoded or args.bitstreams or args.codec):
        references = [ClassificationEvaluator(classifier, targets) for classifier in classifiers]
    return Task("classification", labeled.items, evaluators, references)


def main(argv: Sequence[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    from ugicm.evaluation.tasks.command import evaluate

    return evaluate(build, args)


if __name__ == "__main__":
    sys.exit(run_command(main))
