#!/usr/bin/env python3
"""Rewrite the tables in README.md and docs/ from the results files they come from.

    python scripts/make_tables.py            # rewrite
    python scripts/make_tables.py --check    # exit status 1 if a table is not what its file says

A table stands between ``<!-- table: NAME docs/results/FILE.json -->`` and ``<!-- end of table -->``. NAME is one of
rate (results.json of tests/test.py) and speed (of scripts/benchmark.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def rate(document: dict) -> list[list[str]]:
    """Averages by quality."""
    results = document["results"]
    rows = [["quality", "bpp", "PSNR, human", "PSNR, machine", "MS-SSIM, human", "MS-SSIM, machine"]]
    for i, quality in enumerate(results["quality"]):
        rows.append([f"{quality:g}", f"{results['bpp'][i]:.3f}"] + [
            f"{results[key][i]:.{digits}f}" for key, digits in (
                ("psnr-rgb", 2), ("psnr-rgb-machine", 2), ("ms-ssim-rgb", 4), ("ms-ssim-rgb-machine", 4))
        ])  # fmt: skip
    return rows


def speed(document: dict) -> list[list[str]]:
    """Seconds, and ratios to the reference codec in the same run."""
    rows = [["codec", "size", "compress", "decompress to one", "to both", "ratio of compress", "of decompress"]]
    for r in document["timings"]:
        both = f"{r['decompress_both']:.2f} s" if r["decompress_both"] else "-"
        rows.append([
            r["name"], f"{r['height']}×{r['width']}", f"{r['compress']:.2f} s", f"{r['decompress']:.2f} s", both,
            f"{r['compress_ratio']:.2f}", f"{r['decompress_ratio']:.2f}",
        ])  # fmt: skip
    return rows


TABLES = {"rate": rate, "speed": speed}


def markdown(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *body]) + "\n"


def rewritten(text: str) -> str:
    def block(match: re.Match) -> str:
        begin, name, path, end = match.groups()
        return begin + markdown(TABLES[name](json.loads((ROOT / path).read_text()))) + end

    return BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    stale = 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        new = rewritten(text)
        if new != text:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {'does not match its results files' if args.check else 'rewritten'}")
            if not args.check:
                path.write_text(new)
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
