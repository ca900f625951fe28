"""The report for papers and READMEs: markdown tables and PNG plots."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ugicm import atomic
from ugicm.report.comparison import comparable

# Okabe & Ito's colors, told apart by everyone; ours first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
MARKERS = "os^Dvp*X"
_LEGEND = (
    "BD-rates: in brackets a 95 % interval, from resampling the images; † where the two curves share less than a "
    "quarter of what they span."
)
# How metrics begin, and their unit.
_UNITS = {
    "psnr": " (dB)", "ms-ssim": " (dB)", "lpips": " (less is better)", "log-loss": ", nats (less is better)",
    "encoding_time": ", s", "decoding_time": ", s",
    **dict.fromkeys(("top-", "agreement", "AP", "box AP", "mask AP", "mAP", "mIoU", "IoU", "pixel accuracy"), ", %"),
}  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """Tables of a results document: per data set the Bjøntegaard deltas of every headline score, then the points."""
    parts = [f"# {document['name']}\n\n{_LEGEND}\n"]
    for section in document["sections"]:
        parts.append(f"\n## {section['name']}, {section['images']} images\n")
        if section["originals"]:
            shown = {title: v for title in section["originals"] if (v := original(section, title)) is not None}
            scores = ", ".join(f"{title} {value:.1f}" for title, value in shown.items())
            parts.append(f"\nOriginals: {scores}.\n" if scores else "")
        for metric in section["metrics"]:
            parts.append(_delta_table(section, metric))
        parts.append(_points_table(section))
    if document["notes"]:
        parts.append("\n## Not measured, left out\n\n" + "".join(f"- {note}\n" for note in document["notes"]))
    meta = document["meta"]
    parts.append(
        f"\nMade with `{meta['command']}` (ugicm {meta['ugicm']}, revision {meta['revision']}, {meta['processor']}, "
        f"{meta['device']}, {meta['threads']} threads, {meta['time'][:10]}).\n"
    )
    return "".join(parts)


def original(section: dict[str, Any], title: str) -> float | None:
    """The score of the original images; None where there is none, and for their agreement with themselves."""
    return None if title.startswith("agreement") else section["originals"].get(title)


def _delta_table(section: dict[str, Any], metric: dict[str, Any]) -> str:
    title = metric["title"]
    rows = {(d["test"], d["reference"]): d for d in section["deltas"] if d["metric"] == title}
    names = [curve["name"] for curve in section["curves"]]
    if not rows:
        return ""
    lines = [
        f"\n### BD-rate at equal {title}\n\n",
        "| rate needed by ↓ against → | " + " | ".join(map(_cell, names)) + " |\n",
        "|---|" + "--:|" * len(names) + "\n",
    ]
    for test in names:
        cells = [_delta_cell(rows.get((test, reference))) for reference in names]
        lines.append(f"| {_cell(test)} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _delta_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    rate = row["rate"]
    if rate["value"] is None:
        return rate["note"]
    text = f"{rate['value']:+.1f} %".replace("-", "−")
    if rate["interval"]:
        text += " ({:+.0f} … {:+.0f})".format(*rate["interval"]).replace("-", "−")
    return text + (" †" if "narrow" in rate["note"] else "")


def _points_table(section: dict[str, Any]) -> str:
    titles = [m["title"] for m in section["metrics"]]
    lines = ["\n### Rate points\n\n", "| curve | setting | bpp | " + " | ".join(map(_cell, titles)) + " |\n"]
    lines.append("|---|--:|--:|" + "--:|" * len(titles) + "\n")
    for curve in section["curves"]:
        for index, setting in enumerate(curve["settings"]):
            values = [curve["results"].get(title, [None] * (index + 1))[index] for title in titles]
            cells = " | ".join(number(value, title) for value, title in zip(values, titles, strict=True))
            bpp = curve["results"]["bpp"][index]
            lines.append(f"| {_cell(curve['name'])} | {setting:g} | {bpp:.3f} | {cells} |\n")
    return "".join(lines)


def _cell(name: str) -> str:
    """A name in a table: a bar would end its cell."""
    return name.replace("|", "\\|")


def number(value: float | None, title: str) -> str:
    """A score as people read it."""
    if value is None:
        return "–"
    return f"{value:.4f}" if title.startswith(("ms-ssim", "lpips")) else f"{value:.2f}"


def plots(document: dict[str, Any], folder: Path) -> None:
    """``FOLDER/DATASET METRIC.png`` for every headline score."""
    for section in document["sections"]:
        for metric in section["metrics"]:
            curves = [
                (curve["name"], curve["results"]["bpp"], curve["results"].get(metric["title"], []))
                for curve in section["curves"]
            ]
            name = "".join(c if c.isalnum() or c in " -." else "_" for c in f"{section['name']} {metric['title']}")
            plot(folder / f"{name.strip()}.png", curves, metric["title"], section["name"],
                 original(section, metric["title"]))  # fmt: skip


def plot(
    path: Path,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float | None]]],
    metric: str,
    title: str = "",
    original: float | None = None,
) -> None:
    """Curves (name, bits per pixel, scores) of one metric, to a PNG file. MS-SSIM is drawn in dB. ``original``: the
    score of uncompressed images, a dotted line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    names = []
    for index, (name, bpp, scores) in enumerate(curves):
        pairs = [(x, comparable(y, metric)) for x, y in zip(bpp, scores, strict=True)]
        pairs = sorted(pair for pair in pairs if pair[1] is not None)
        if pairs:
            axes.plot(
                *zip(*pairs, strict=True),
                color=COLORS[index % len(COLORS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
                label=str(len(names)),
            )
            names.append(name)
    if original is not None:
        axes.axhline(original, color="#555555", linestyle=":", linewidth=1, label="original")
        names.append("original")
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(axis_label(metric), parse_math=False)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    # Names come last: matplotlib leaves out labels that begin with _, and takes what is between two $ for a formula.
    for text, name in zip(axes.legend(fontsize=8).get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    with atomic.replacing(path) as temporary:  # lines need few colors: a third of the size
        few = Image.open(drawn).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE)  # also those of single points
        few.save(temporary, "PNG", optimize=True)


def axis_label(metric: str) -> str:
    """A metric with its unit."""
    return metric + next((unit for start, unit in _UNITS.items() if metric.startswith(start)), "")
