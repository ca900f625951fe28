#!/usr/bin/env python3
"""Make instance masks for images without labels, for the instance term of training.

    python scripts/make_instances.py images/ -o images_instances.json
    python scripts/make_instances.py images/ -o out.json --method maskrcnn --weights maskrcnn_resnet50_fpn.pth

The output is a COCO json (run-length masks, one category): name it as `instances` of a source in a training yaml.
A call that was interrupted continues where it stopped. Exit status: 0 done, 1 some images were unreadable
or something failed, 2 unusable input, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ugicm.arguments import Parser, guarded, positive


def main() -> int:
    """Returns the exit status."""
    return guarded(_make, interrupted="interrupted; the same command continues")


def _make() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of images (searched recursively), .txt list or image")
    parser.add_argument("-o", "--output", type=Path, required=True, help="json to write or continue")
    parser.add_argument("-n", "--count", type=positive, default=5, help="at most so many objects an image (default 5)")
    parser.add_argument(
        "--method", choices=("regions", "maskrcnn"), default="regions",
        help="regions: merged superpixels, needs no weights (default); maskrcnn: torchvision's detector",
    )  # fmt: skip
    parser.add_argument("--weights", default="default", help="maskrcnn: a file, or default to download them")
    parser.add_argument("--score", type=float, default=0.5, help="maskrcnn: least confidence (default 0.5)")
    arguments = parser.parse_args()
    from ugicm.data.proposals import MaskRCNN, annotate, propose

    if arguments.method == "regions":
        proposer, made_by = propose, f"regions, at most {arguments.count}"
    else:
        proposer = MaskRCNN(arguments.weights, arguments.score)
        made_by = f"maskrcnn above {arguments.score}, at most {arguments.count}"
    done, present, broken = annotate(arguments.source, arguments.output, proposer, arguments.count, made_by)
    print(f"{arguments.output}: {done} images added, {present} were there, {broken} unreadable")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
