#!/usr/bin/env python
"""How well segmentation networks name the pixels of images after a codec: mean intersection over union.

  python scripts/eval_semantic.py --voc VOCdevkit/VOC2012 --codec ugicm --quality 0.3
  python scripts/eval_semantic.py -d images --masks masks --decoded out --segmenter fcn_resnet50=W.pth

Masks hold a class number per pixel (palette or gray), 255 where a pixel does not count.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ugicm.arguments import Parser, guarded


def parser() -> Parser:
    from ugicm.evaluation.tasks.sources import add_source_arguments

    parser = Parser(description=__doc__)
    parser.add_argument("--voc", metavar="DIR", help="a year of VOCdevkit: JPEGImages, SegmentationClass, ImageSets")
    parser.add_argument("--split", default="val", help="of VOC (default: %(default)s)")
    parser.add_argument("-d", "--dataset", metavar="DIR", help="images, where they are not VOC's")
    parser.add_argument("--masks", metavar="DIR", help="their masks, named alike")
    parser.add_argument(
        "--segmenter", default="deeplabv3_resnet50", metavar="NAME[=PATH]",
        help="a segmentation network of torchvision (default: %(default)s)",
    )  # fmt: skip
    add_source_arguments(parser)
    parser.set_defaults(batch_size=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from ugicm.arguments import pick_device
    from ugicm.errors import ConfigError
    from ugicm.evaluation.tasks.command import score
    from ugicm.evaluation.tasks.semantic_segmentation import (
        SegmentationEvaluator,
        load_segmenter,
        paired_items,
        voc_items,
    )

    if bool(args.voc) == bool(args.dataset or args.masks) or bool(args.dataset) != bool(args.masks):
        raise ConfigError("name the images: --voc DIR, or -d DIR with --masks DIR")
    items = voc_items(args.voc, args.split) if args.voc else paired_items(args.dataset, args.masks)
    device = pick_device(args.device)
    evaluator = SegmentationEvaluator(load_segmenter(args.segmenter, device))
    return score(args, "semantic segmentation", items, [evaluator], device)


if __name__ == "__main__":
    sys.exit(guarded(main))
