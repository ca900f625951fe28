#!/usr/bin/env python3
"""Measure large pictures: memory, seams between tiles, rate against one piece, and the cost of a region.

    python scripts/check_large.py -o docs/results/large.json
    python scripts/check_large.py -c model.safetensors --size 3840x2160 --one-piece 2560x1600

The picture is a mosaic of the packaged samples, or of a folder's pictures. Exit status 1 if a limit is exceeded.
Linux only: peak memory is read from /proc. With the shipped model on one core, about 5 minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--checkpoint", help="model (default: the shipped one)")
    parser.add_argument("-d", "--dataset", help="folder of pictures for the mosaic (default: the packaged samples)")
    parser.add_argument("--size", default="7680x4320", metavar="WxH", help="of the large picture")
    parser.add_argument("--one-piece", default="3072x2048", metavar="WxH", help="of the one also coded in one piece")
    parser.add_argument("--tile", type=int, default=1024, help="side of the tiles")
    parser.add_argument("--quality", type=float, default=0.5)
    parser.add_argument("-o", "--output", default="experiments/large.json")
    args = parser.parse_args()

    import json
    import tempfile
    from importlib import resources

    from ugicm import files
    from ugicm.evaluation import large, results

    try:
        size, small = (tuple(map(int, text.split("x"))) for text in (args.size, args.one_piece))
    except ValueError:
        parser.error("sizes are WIDTHxHEIGHT, such as 7680x4320")
    folder = args.dataset or str(resources.files("ugicm") / "samples")
    sources = files.find(folder, files.PICTURE_SUFFIXES)
    with tempfile.TemporaryDirectory() as temporary:
        report = large.check(
            args.checkpoint, sources, Path(temporary), size, small, args.quality, args.tile,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    report |= {"sources": len(sources), "data": results.digest(sources, Path(folder))}
    report |= {"environment": results.environment()}
    files.write(args.output, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    rows = [[c["what"], f"{c['value']:.4g}", f"{c['limit']:.4g}", "yes" if c["holds"] else "NO"]
            for c in report["checks"]]  # fmt: skip
    print(results.table(rows, ["", "measured", "limit", "holds"]))
    shares = [[f"{r['region'][2]}x{r['region'][3]}", *(f"{r[k]:.3f}" for k in (
        "area_share", "tiles_share", "seconds_share"))] for r in report["regions"]]  # fmt: skip
    print("\n" + results.table(shares, ["region", "share of area", "of tiles touched", "of seconds"]))
    return 0 if all(c["holds"] for c in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
