"""Images of results: rate-distortion curves, and crops side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ugicm import atomic
from ugicm.images import middle, save_image

_CROP = 256
_LABEL = 22


def rate_distortion(path: str | os.PathLike, averages: Mapping[str, Sequence]) -> None:
    """Plot PSNR and MS-SSIM over bits per pixel for both preferences, to a file.

    ``averages`` are rate points of a results file; points whose metric does not exist are left out.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, nothing global

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, metric, label in zip(panels, ("psnr-rgb", "ms-ssim-rgb"), ("PSNR (dB)", "MS-SSIM"), strict=True):
        for suffix, name, style in (("", "human", "o-"), ("-machine", "machine", "s--")):
            points = [p for p in zip(averages["bpp"], averages[metric + suffix], strict=True) if None not in p]
            panel.plot([x for x, _ in points], [y for _, y in points], style, label=name, markersize=4)
        panel.set_xlabel("bits per pixel")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend(title="decoded for")
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


@dataclass(frozen=True)
class Compared:
    """A row of the comparison. ``record``: the image's measurements at one quality."""

    name: str
    original: Image.Image
    human: Image.Image
    machine: Image.Image
    record: Mapping[str, Any]


def comparison(path: str | os.PathLike, rows: Sequence[Compared]) -> None:
    """Crops from the middle of each image, pixel for pixel: original | human | machine, with rates, to a file."""
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (3 * _CROP + 2 * 4, len(rows) * (_CROP + _LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        record, top = row.record, i * (_CROP + _LABEL)
        rate = f"{record['bpp']:.3f} bpp"
        labels = (
            f"{row.name}, original",
            f"human, {rate}{_decibels(record['psnr-rgb'])}",
            f"machine, {rate}{_decibels(record['psnr-rgb-machine'])}",
        )
        for j, (image, label) in enumerate(zip((row.original, row.human, row.machine), labels, strict=True)):
            left = j * (_CROP + 4)
            draw.text((left + 3, top + 3), label, fill="black", font=font)
            sheet.paste(middle(image, _CROP), (left, top + _LABEL))
    save_image(sheet, path)


def _decibels(value: float | None) -> str:
    return "" if value is None else f", {value:.2f} dB"
