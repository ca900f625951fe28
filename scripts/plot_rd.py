#!/usr/bin/env python
"""Plot the curves of several results files: of ugicm, of CompressAI, or a report's results.json.

python scripts/plot_rd.py report/curves/kodak/*.json -o kodak.png
python scripts/plot_rd.py ours.json compressai/results/image/kodak/mbt2018-mean-mse.json --metric ms-ssim-rgb
python scripts/plot_rd.py report/results.json --section imagenet --metric "top-1 (resnet101)"

Curves are labeled with the names in their files, or with file names if several files have a curve of the same name.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ugicm.arguments import ArgumentParser, run_command

SHORT = {"psnr": "psnr-rgb", "ms-ssim": "ms-ssim-rgb"}  # names in older files of CompressAI


def read_curves(path: str, section: str | None) -> list[tuple[str, dict[str, list]]]:
    """Return (name, scores by metric) of every curve in a file. Raises ConfigError if there are none."""
    from ugicm.errors import ConfigError

    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    try:
        if "sections" in document:
            names = [s["name"] for s in document["sections"]]
            if not names:
                raise LookupError("no sections")
            if section is None and len(names) > 1:
                raise ConfigError(f"{path}: there are several datasets; choose one with --section: {', '.join(names)}")
            found = next((s for s in document["sections"] if section in (None, s["name"])), None)
            if found is None:
                raise ConfigError(f"{path}: no section {section!r}; available: {', '.join(names)}")
            curves = [(curve["name"], curve["results"]) for curve in found["curves"]]
        else:
            curves = [(document.get("name") or Path(path).stem, document["results"])]
    except (LookupError, TypeError, AttributeError):
        curves = []
    if not curves or not all(isinstance(name, str) and isinstance(scores, dict) for name, scores in curves):
        raise ConfigError(
            f"{path}: not a results file (a JSON object with 'results', or with 'sections' of named 'curves' with such)"
        )
    return curves


def points(path: str, name: str, bpp: Sequence[float], scores: Sequence[float | None]) -> tuple[list, list]:
    """Return the rates and scores of a curve. Raises ConfigError if they are not lists of numbers of equal length."""
    from ugicm.errors import ConfigError

    def numbers(values) -> bool:
        return isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)

    known = [score for score in scores if score is not None] if isinstance(scores, list) else None
    if not (numbers(bpp) and numbers(known) and len(bpp) == len(scores)):
        raise ConfigError(f"{path}: {name}: bits per pixel and scores must be lists of numbers of equal length "
                          "(scores may be null)")  # fmt: skip
    return bpp, scores


def labels(curves: Sequence[tuple[str, str, bool]]) -> list[str]:
    """Return the labels of curves, given as (name, file, whether it is the only one in its file).

    A label is the curve's name. If several files have a curve of that name, it contains a distinct part of the path.
    """
    files = defaultdict(set)
    for name, path, _ in curves:
        files[name].add(path)
    texts = []
    for name, path, single in curves:
        if len(files[name]) > 1:
            part = _distinct_part(path, files[name])
            name = part if single else f"{part}: {name}"
        texts.append(name)
    return texts


def _distinct_part(path: str, among: set[str]) -> str:
    """Return the shortest end of a path, without extension, that no other path of ``among`` has."""
    ends = [Path(other).with_suffix("").parts for other in among]
    own = Path(path).with_suffix("").parts
    count = next((n for n in range(1, len(own)) if sum(end[-n:] == own[-n:] for end in ends) == 1), len(own))
    return "/".join(own[-count:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="JSON")
    parser.add_argument("-m", "--metric", default="psnr-rgb", help="(default: %(default)s)")
    parser.add_argument("-s", "--section", metavar="NAME", help="dataset in a report's results.json")
    parser.add_argument("-t", "--title", default="")
    parser.add_argument("-o", "--output", default="rd.png", metavar="PNG", help="(default: %(default)s)")
    args = parser.parse_args(argv)

    from ugicm.errors import ConfigError
    from ugicm.report.tables import plot

    metric = SHORT.get(args.metric, args.metric)
    curves, names = [], []
    for path in args.files:
        found = read_curves(path, args.section)
        names += [(name, path, len(found) == 1) for name, _ in found]
        for name, scores in found:
            key = next((k for k in (metric, args.metric, metric.removesuffix("-rgb")) if k in scores), None)
            if key is None or "bpp" not in scores:
                raise ConfigError(f"{path}: {name} has no '{metric}'; available: {', '.join(scores)}")
            curves.append(points(path, name, scores["bpp"], scores[key]))
    named = [(name, *curve) for name, curve in zip(labels(names), curves, strict=True)]
    plot(Path(args.output), named, metric, args.title)
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
