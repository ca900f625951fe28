#!/usr/bin/env python
"""Curves of several results files in one plot: ours, CompressAI's, or a report's results.json.

python scripts/plot_rd.py report/curves/kodak/*.json -o kodak.png
python scripts/plot_rd.py ours.json compressai/results/image/kodak/mbt2018-mean-mse.json --metric ms-ssim-rgb
python scripts/plot_rd.py report/results.json --section imagenet --metric "top-1 (resnet101)"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHORT = {"psnr": "psnr-rgb", "ms-ssim": "ms-ssim-rgb"}  # as CompressAI's older files and its own plots have them


def read_curves(path: str, section: str | None) -> list[tuple[str, dict[str, list]]]:
    """(name, scores per metric) of every curve in a file. Raises ConfigError for a file that holds none."""
    from ugicm.errors import ConfigError
    from ugicm.evaluation import results

    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as json: {error}") from None
    if isinstance(document, dict) and "sections" in document:
        names = [s["name"] for s in document["sections"]]
        if section is None and len(names) > 1:
            raise ConfigError(f"{path}: holds several data sets, choose one with --section: {', '.join(names)}")
        found = next((s for s in document["sections"] if section in (None, s["name"])), None)
        if found is None:
            raise ConfigError(f"{path}: no section {section!r}; available: {', '.join(names)}")
        return [(curve["name"], curve["results"]) for curve in found["curves"]]
    try:
        document = results.read(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return [(document.get("name") or Path(path).stem, document["results"])]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="JSON")
    parser.add_argument("-m", "--metric", default="psnr-rgb", help="(default: %(default)s)")
    parser.add_argument("-s", "--section", metavar="NAME", help="data set of a report's results.json")
    parser.add_argument("-t", "--title", default="")
    parser.add_argument("-o", "--output", default="rd.png", metavar="PNG", help="(default: %(default)s)")
    args = parser.parse_args(argv)

    from ugicm.errors import ConfigError
    from ugicm.evaluation.report_tables import plot

    metric = SHORT.get(args.metric, args.metric)
    curves = []
    for path in args.files:
        for name, scores in read_curves(path, args.section):
            key = next((k for k in (metric, args.metric, metric.removesuffix("-rgb")) if k in scores), None)
            if key is None or "bpp" not in scores:
                raise ConfigError(f"{path}: {name} has no '{metric}'; available: {', '.join(scores)}")
            curves.append((name, scores["bpp"], scores[key]))
    plot(Path(args.output), curves, metric, args.title)
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    from ugicm.evaluation.usage import guarded

    guarded(main)
