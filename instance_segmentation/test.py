#!/usr/bin/env python
"""Evaluate instance segmentation on coded images: COCO's average precision (AP) of boxes and masks, and agreement with
the detections in the originals, which needs no annotations.

examples:
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json                              the originals
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json --codec ugicm --quality 0.3
  python instance_segmentation/test.py -d out/machine --annotations A.json --detectors maskrcnn_resnet50_fpn=W.pth
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json --codec webp --quality 60
  python instance_segmentation/test.py -d photos --codec jpeg --quality 30 --detectors mine.py:build   agreement only
  python instance_segmentation/test.py --annotations A.json --detections D.json                  detections of any model

Images are matched by the file names in the annotations, with any extension.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ugicm.arguments import ArgumentParser, run_command

if TYPE_CHECKING:
    from ugicm.evaluation.tasks.base import Task

_WITH_DETECTIONS = ("annotations", "detections", "output")  # the options that --detections can be combined with


def argument_parser() -> ArgumentParser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", metavar="DIR", help="original images (required without --detections)")
    parser.add_argument("--annotations", metavar="JSON", help="COCO ground truth (default: agreement only)")
    parser.add_argument(
        "--detectors", nargs="+", default=["maskrcnn_resnet50_fpn"], metavar="NAME[=PATH]",
        help="torchvision detectors, or FILE.py:function that returns one; PATH: local weights, :classes=FILE: their "
        "class names (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-agreement", action="store_true", help="do not evaluate the originals for agreement")
    parser.add_argument(
        "--detections", metavar="JSON", help="score the detections in a file in COCO's result format, without images"
    )
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_args(argv)
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks.command import evaluate

    if args.detections:
        # Identity also recognizes a list that was given and equals the default.
        given = [name for name, value in vars(args).items() if value is not parser.get_default(name)]
        options = [f"--{name.replace('_', '-')}" for name in given if name not in _WITH_DETECTIONS]
        if options:
            raise ConfigError(f"--detections cannot be combined with {' '.join(options)}: leave them out")
        if not args.annotations:
            raise ConfigError("--detections needs the ground truth: pass --annotations JSON")
        return _score_detections(args)
    return evaluate(build, args)


def build(args: argparse.Namespace, device: str) -> Task:
    """Return the task of the options, with the detectors on a device."""
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks.base import Task
    from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth
    from ugicm.evaluation.tasks.detectors import load_detector
    from ugicm.evaluation.tasks.sources import folder_items

    if not args.dataset:
        raise ConfigError("detectors need the folder of the images: pass -d DIR")
    compared = bool(args.decoded or args.bitstreams or args.codec) and not args.no_agreement
    if not args.annotations and not compared:
        raise ConfigError(
            "nothing to compare with: pass --annotations JSON, or images under test (--codec, --decoded or "
            "--bitstreams) for the agreement with the originals"
        )
    truth = CocoTruth(args.annotations) if args.annotations else None
    detectors = [load_detector(text, device) for text in args.detectors]
    evaluators = [CocoEvaluator(detector, truth) for detector in detectors]
    references = [CocoEvaluator(detector, truth) for detector in detectors] if compared else []
    items = truth.items(args.dataset) if truth else folder_items(args.dataset)
    return Task("instance segmentation", items, evaluators, references, truth.digest if truth else None)


def _score_detections(args: argparse.Namespace) -> int:
    """Score a file of detections, print the scores and write a results file. Return the exit status."""
    from ugicm.evaluation import results
    from ugicm.evaluation.digests import file_digest
    from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth, read_detections

    truth = CocoTruth(args.annotations)
    records, iou_types = read_detections(args.detections, truth)
    scores = CocoEvaluator(None, truth, iou_types).summarize(records)
    print(f"instance segmentation: {len(records)} images (detections {args.detections})")
    rows = [(name, f"{value:.2f}") for name, value in scores.items() if value is not None]
    print(results.table(rows, ("score", "value")))
    if args.output:
        meta = {
            **results.environment(),
            "detections": {"path": args.detections, "digest": file_digest(args.detections)},
            "annotations": {"path": args.annotations, "digest": truth.digest},
        }
        values = {name: [value] for name, value in scores.items()}
        results.write(args.output, "instance segmentation", f"{len(records)} images", values, meta=meta)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
