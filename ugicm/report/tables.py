"""Markdown tables and PNG plots of a report's results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ugicm import atomic
from ugicm.errors import printable
from ugicm.extras import require_packages
from ugicm.report.comparison import comparable

# Okabe & Ito's colors, distinguishable with color vision deficiencies; ugicm comes first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
MARKERS = "os^Dvp*X"
_LEGEND = (
    "Rate is averaged over images, every image counting the same. "
    "BD-rates, with 95 % bootstrap intervals over images in parentheses. † marks an overlap of less than a quarter of "
    "the range of the two curves, ‡ an interval over fewer than 10 images, which is too narrow."
)
# Units by the beginning of a metric's title.
_UNITS = {
    "psnr": " (dB)", "ms-ssim": " (dB)", "lpips": " (lower is better)", "log-loss": ", nats (lower is better)",
    "encoding_time": ", s", "decoding_time": ", s",
    **dict.fromkeys(("top-", "agreement", "AP", "box ", "mask ", "mAP", "mIoU", "IoU", "pixel accuracy"), ", %"),
}  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """Return the tables of a results document: per dataset the BD-rates of every metric, then the rate points."""
    parts = [f"# {document['name']}\n\n{_LEGEND}\n"]
    for section in document["sections"]:
        parts.append(f"\n## {section['name']}, {section['images']} images\n")
        scores = {title: original_score(section, title) for title in section["originals"]}
        shown = ", ".join(f"{title} {value:.1f}" for title, value in scores.items() if value is not None)
        parts.append(f"\nOriginals: {shown}.\n" if shown else "")
        parts += [_delta_table(section, metric["title"]) for metric in section["metrics"] if section["deltas"]]
        parts.append(_points_table(section))
    if document["notes"]:
        parts.append("\n## Not measured, left out\n\n" + "".join(f"- {note}\n" for note in document["notes"]))
    meta = document["meta"]
    parts.append(
        f"\nMade with `{meta['command']}` (ugicm {meta['ugicm']}, revision {meta['revision']}, {meta['processor']}, "
        f"{meta['device']}, {meta['threads']} threads, {meta['time'][:10]}).\n"
    )
    return "".join(parts)


def original_score(section: dict[str, Any], title: str) -> float | None:
    """Return the score of the original images; None if there is none, and for the agreement with themselves."""
    return None if title.startswith("agreement") else section["originals"].get(title)


def _delta_table(section: dict[str, Any], title: str) -> str:
    rows = {(d["test"], d["reference"]): d for d in section["deltas"] if d["metric"] == title}
    names = [curve["name"] for curve in section["curves"]]
    cells = [[test, *(_delta_cell(rows.get((test, reference))) for reference in names)] for test in names]
    return f"\n### BD-rate at equal {title}\n\n" + _table(["rate needed by ↓ against →", *names], cells)


def _delta_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    rate = row["rate"]
    if rate["value"] is None:
        return rate["note"]
    text = f"{rate['value']:+.1f} %"
    if rate["interval"]:
        text += " ({:+.0f} … {:+.0f})".format(*rate["interval"])
    marks = [mark for mark, reason in ((" †", "narrow overlap"), (" ‡", "rough")) if reason in rate["note"]]
    return text.replace("-", "−") + "".join(marks)


def _points_table(section: dict[str, Any]) -> str:
    titles = [metric["title"] for metric in section["metrics"]]
    cells = []
    for curve in section["curves"]:
        results = curve["results"]
        for i, (setting, bpp) in enumerate(zip(curve["settings"], results["bpp"], strict=True)):
            scores = (number(results[title][i], title) for title in titles)
            cells.append([curve["name"], f"{setting:g}", f"{bpp:.3f}", *scores])
    return "\n### Rate points\n\n" + _table(["curve", "setting", "bpp", *titles], cells)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table, numbers right-aligned; a bar in a cell is escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in (heads, *rows)]
    lines.insert(1, "|---|" + "--:|" * (len(heads) - 1) + "\n")
    return "".join(lines)


def number(value: float | None, title: str) -> str:
    """Return a score as text, with the digits that suit its metric."""
    if value is None:
        return "–"
    return f"{value:.4f}" if title.startswith(("ms-ssim", "lpips")) else f"{value:.2f}"


def plots(document: dict[str, Any], folder: Path) -> None:
    """Write ``FOLDER/DATASET-METRIC.png`` for every metric."""
    for section in document["sections"]:
        for title in (metric["title"] for metric in section["metrics"]):
            curves = [(c["name"], c["results"]["bpp"], c["results"][title]) for c in section["curves"]]
            name = re.sub(r"\W+", "-", f"{section['name']} {title}").strip("-")
            plot(folder / f"{name}.png", curves, title, section["name"], original_score(section, title))


def plot(
    path: Path,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float | None]]],
    metric: str,
    title: str = "",
    original: float | None = None,
) -> None:
    """Plot curves (name, bits per pixel, scores) of one metric to a PNG file. MS-SSIM is drawn in dB.

    ``original``: the score of uncompressed images, a dotted line.
    """
    require_packages("eval", "a plot", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    names = []
    for index, (name, bpp, scores) in enumerate(curves):
        pairs = [(x, comparable(y, metric)) for x, y in zip(bpp, scores, strict=True)]
        pairs = sorted(pair for pair in pairs if pair[1] is not None)
        if pairs:
            axes.plot(*zip(*pairs, strict=True), color=COLORS[index % len(COLORS)],
                      marker=MARKERS[index % len(MARKERS)], markersize=4, linewidth=1.4, label="curve")  # fmt: skip
            names.append(name)
    if original is not None:
        axes.axhline(original, color="#555555", linestyle=":", linewidth=1, label="original")
        names.append("original")
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(axis_label(metric), parse_math=False)
    axes.set_title(printable(title), fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    # Names are set last: matplotlib omits labels that begin with _, and parses text between two $ as a formula.
    for text, name in zip(axes.legend(fontsize=8).get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(printable(name))
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def axis_label(metric: str) -> str:
    """Return a metric's title with its unit."""
    return metric + next((unit for start, unit in _UNITS.items() if metric.startswith(start)), "")
