#!/usr/bin/env python3
"""Measure large images: memory, seams between tiles, rate against one piece, and the cost of a region.

    python -m scripts.stress.check_large -o docs/results/large.json
    python -m scripts.stress.check_large -c model.safetensors --size 3840x2160 --one-piece 2560x1600

The image is a mosaic of the packaged samples, or of a folder's images. Linux only: peak memory is read from /proc.
With the shipped model on one core, about 5 minutes.
Exit status: 0 within all limits, 1 a limit is exceeded or something failed, 2 it cannot be measured as asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ugicm.arguments import Parser, guarded, positive, sides, unit
from ugicm.bitstream import LARGEST_TILE
from ugicm.tiling import Z_STRIDE


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", help="folder of images for the mosaic (default: the packaged samples)")
    parser.add_argument("--size", type=sides("WIDTHxHEIGHT"), default="7680x4320", metavar="WxH",
                        help="of the large image")  # fmt: skip
    parser.add_argument("--one-piece", type=sides("WIDTHxHEIGHT"), default="3072x2048", metavar="WxH",
                        help="of the one also coded in one piece")  # fmt: skip
    parser.add_argument("--tile", type=positive, default=1024, help="side of the tiles, a multiple of 64")
    parser.add_argument("--quality", type=unit, default=0.5)
    parser.add_argument("-o", "--output", default="experiments/large.json")
    args = parser.parse_args(argv)
    if args.tile % Z_STRIDE or args.tile > LARGEST_TILE:
        parser.error(f"--tile {args.tile}: must be a multiple of {Z_STRIDE} up to {LARGEST_TILE}")

    import json
    import tempfile
    from importlib import resources

    import ugicm
    from scripts.stress import large_images
    from ugicm import atomic, files
    from ugicm.evaluation import digests, results

    folder = args.dataset or str(resources.files("ugicm") / "samples")
    sources = files.find(folder, files.IMAGE_SUFFIXES)
    model = ugicm.load(args.checkpoint).describe()
    with tempfile.TemporaryDirectory() as temporary:
        report = large_images.check(
            args.checkpoint, sources, Path(temporary), args.size, args.one_piece, args.quality, args.tile,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    report |= {"sources": len(sources), "data": digests.tree_digest(sources, Path(folder))}
    report |= {"model": model, "environment": results.environment()}
    atomic.write(args.output, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    rows = [[c["what"], f"{c['value']:.4g}", f"{c['limit']:.4g}", "yes" if c["holds"] else "NO"]
            for c in report["checks"]]  # fmt: skip
    print(results.table(rows, ["", "measured", "limit", "holds"]))
    shares = [[f"{r['region'][2]}x{r['region'][3]}", *(f"{r[k]:.3f}" for k in (
        "area_share", "tiles_share", "seconds_share"))] for r in report["regions"]]  # fmt: skip
    print("\n" + results.table(shares, ["region", "share of area", "of tiles touched", "of seconds"]))
    return 0 if all(c["holds"] for c in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
