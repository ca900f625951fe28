#!/usr/bin/env python
"""How well detectors outline objects in images after a codec: COCO's average precision of boxes and masks.

  python instance_segmentation/test.py -d coco/val2017 --annotations instances_val2017.json         the originals
  python instance_segmentation/test.py -d coco/val2017 --annotations A.json --codec ugicm --quality 0.3
  python instance_segmentation/test.py -d out/machine --annotations A.json --detectors maskrcnn_resnet50_fpn=W.pth
  python instance_segmentation/test.py --annotations A.json --detections found.json
  torchrun --nproc_per_node=4 instance_segmentation/test.py -d coco --annotations A.json --codec webp --quality 60

Images are found by the names in the annotations; their extension does not matter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ugicm.arguments import Parser, guarded

_WITH_DETECTIONS = ("annotations", "detections", "output")  # the options that --detections heeds


def parser() -> Parser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = Parser(description=__doc__)
    parser.add_argument("-d", "--dataset", metavar="DIR", help="the images (needed but for --detections)")
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
    options = parser()
    args = options.parse_args(argv)
    from ugicm.arguments import pick_device
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth
    from ugicm.evaluation.tasks.command import score
    from ugicm.evaluation.tasks.detectors import load_detector

    if args.detections:
        given = [name for name, value in vars(args).items() if value != options.get_default(name)]
        useless = [f"--{name.replace('_', '-')}" for name in given if name not in _WITH_DETECTIONS]
        if useless:
            raise ConfigError(f"--detections scores a file alone, without images: leave out {' '.join(useless)}")
    truth = CocoTruth(args.annotations)
    if args.detections:
        return _score_detections(args, truth)
    if not args.dataset:
        raise ConfigError("the detectors need the folder of the images: -d DIR")
    device = pick_device(args.device)
    evaluators = [CocoEvaluator(load_detector(text, device), truth) for text in args.detectors]
    items = truth.items(args.dataset)
    return score(
        args, "instance segmentation", items, evaluators, device, check=truth.check_size, truth=truth.digest
    )  # fmt: skip


def _score_detections(args, truth) -> int:
    """Score detections that were made before; no network is needed for that."""
    from ugicm.evaluation import results
    from ugicm.evaluation.digests import file_digest
    from ugicm.evaluation.tasks.coco import CocoEvaluator, kinds_of, read_detections

    records = read_detections(args.detections, truth)
    evaluator = CocoEvaluator(None, truth, kinds_of(records))
    evaluator.records = records
    scores = evaluator.evaluate()
    print(results.table([(k, None if v is None else f"{v:.2f}") for k, v in scores.items()], ("score", "value")))
    if args.output:
        digests = {
            "detections": {"path": args.detections, "digest": file_digest(args.detections)},
            "annotations": {"path": args.annotations, "digest": truth.digest},
        }
        results.write(
            args.output, "detections", f"{len(truth.images)} images", {k: [v] for k, v in scores.items()},
            meta={**results.environment(), **digests},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
