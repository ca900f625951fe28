#!/usr/bin/env python
"""How well classifiers recognize images after a codec.

  python classification/test.py -d imagenet/val                                  the originals, ResNet-101
  python classification/test.py -d imagenet/val --codec ugicm --quality 0.3      through the shipped model
  python classification/test.py -d imagenet/val --decoded out/machine --judges resnet101 timm/convnext_tiny
  python classification/test.py -d val --streams out/bitstream --preference 1 --judges open_clip/ViT-B-32=clip.pt
  torchrun --nproc_per_node=4 classification/test.py -d imagenet/val --codec avif --quality 40

DIR is a folder per class, or any folder with a label file. The classifier is taken with its own preprocessing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ugicm.arguments import Parser, guarded


def parser() -> Parser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = Parser(description=__doc__)
    parser.add_argument("-d", "--dataset", required=True, metavar="DIR", help="the original images")
    parser.add_argument(
        "--labels", metavar="FILE", help="csv, ImageNet's val.txt, LOC_val_solution.csv or development kit (default: "
        "DIR/labels.csv, else class folders)",
    )  # fmt: skip
    parser.add_argument(
        "--judges", nargs="+", default=["resnet101"], metavar="NAME[=PATH]",
        help="classifiers of torchvision or timm/NAME, zero-shot open_clip/NAME; :normalize=none, :resize=227 and "
        ":crop=227 change their preprocessing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-agreement", action="store_true", help="do not look at the originals for agreement")
    add_source_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from ugicm.arguments import pick_device
    from ugicm.evaluation.tasks.classification import ClassificationEvaluator
    from ugicm.evaluation.tasks.classifiers import load_judge
    from ugicm.evaluation.tasks.command import score
    from ugicm.evaluation.tasks.labels import check_classes, labeled_images

    labeled = labeled_images(args.dataset, args.labels)
    device = pick_device(args.device)
    judges = [load_judge(text, device) for text in args.judges]
    for judge in judges:
        check_classes(labeled, judge.classes, judge.name)
    targets = {item.key: item.target for item in labeled.items}
    references = [] if args.no_agreement else [ClassificationEvaluator(judge, targets) for judge in judges]
    evaluators = [ClassificationEvaluator(judge, targets) for judge in judges]
    tests_originals = not (args.decoded or args.streams or args.codec)
    for evaluator, reference in zip(evaluators, references, strict=False):
        evaluator.reference = None if tests_originals else reference.records
    return score(args, "classification", labeled.items, evaluators, device, references=references)


if __name__ == "__main__":
    sys.exit(guarded(main))
