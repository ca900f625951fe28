#!/usr/bin/env python
"""How well detectors outline objects in pictures after a codec: COCO's average precision of boxes and masks.

  python instance_segmentation/test.py -d coco/val2017 --annotations instances_val2017.json         the originals
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json --codec ugicm --quality 0.3
  python instance_segmentation/test.py -d out/machine --annotations A.json --detectors maskrcnn_resnet50_fpn=W.pth
  python instance_segmentation/test.py --annotations A.json --detections found.json
  torchrun --nproc_per_node=4 instance_segmentation/test.py -d coco --annotations A.json --codec webp --quality 60

Pictures are found by the names in the annotations; their extension does not matter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ugicm.usage import Parser, guarded  # noqa: E402


def parser() -> Parser:
    from ugicm.evaluation.scorers.sources import add_source_arguments

    parser = Parser(description=__doc__)
    parser.add_argument("-d", "--dataset", metavar="DIR", help="the pictures (needed but for --detections)")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO ground truth")
    parser.add_argument(
        "--detectors", nargs="+", default=["maskrcnn_resnet50_fpn"], metavar="NAME[=PATH]",
        help="torchvision detectors; PATH: local weights, :classes=FILE their class names (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--detections", metavar="JSON", help="score these detections (COCO result format) instead")
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from ugicm.errors import ConfigError
    from ugicm.evaluation import results
    from ugicm.evaluation.scorers.command import score
    from ugicm.evaluation.scorers.detection import CocoEvaluator, CocoTruth, kinds_of, read_detections
    from ugicm.evaluation.scorers.detectors import load_detector
    from ugicm.usage import pick_device

    truth = CocoTruth(args.annotations)
    if args.detections:
        records = read_detections(args.detections, truth)
        evaluator = CocoEvaluator(None, truth, kinds_of(records))
        evaluator.records = records
        scores = evaluator.evaluate()
        print(results.table([(k, None if v is None else f"{v:.2f}") for k, v in scores.items()], ("score", "value")))
        if args.output:
            results.write(
                args.output, "detections", f"{len(truth.images)} pictures", {k: [v] for k, v in scores.items()},
                meta={**results.environment(), "detections": args.detections},
            )  # fmt: skip
        return 0
    if not args.dataset:
        raise ConfigError("the detectors need the folder of the pictures: -d DIR")
    device = pick_device(args.device)
    evaluators = [CocoEvaluator(load_detector(text, device), truth) for text in args.detectors]
    items = truth.items(args.dataset)
    return score(args, "instance segmentation", items, evaluators, device, check=truth.check_size)


if __name__ == "__main__":
    sys.exit(guarded(main))
