"""The side-by-side viewer of a report: originals, decodes along the preference, and baselines at the nearest file size.

Baselines are shown as their real files if browsers can display the format. All other images are embedded as AVIF at
quality 92 without chroma subsampling, or as lossless WebP if this Pillow has no AVIF. The numbers beside an image are
those of the exact decode, not of the embedded copy.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, features

from ugicm.arguments import spread
from ugicm.evaluation.codecs import nearest_setting
from ugicm.evaluation.metrics import file_bpp, psnr
from ugicm.evaluation.tasks.base import Item, process
from ugicm.evaluation.tasks.classification import ClassificationEvaluator
from ugicm.images import open_rgb
from ugicm.report.curves import Cache, CachedCodec, Curve
from ugicm.report.datasets import Dataset


def viewer_data(
    dataset: Dataset, curves: Sequence[Curve], args: argparse.Namespace, cache: Cache
) -> dict[str, Any] | None:
    """Return images of a dataset with all their decodes; None without a codec with preferences or with ``--viewer 0``.

    Bitstreams come from the cache; those that the search for the nearest file size writes are added to it.
    """
    codecs = [CachedCodec(codec, cache) for codec in {curve.codec.identity: curve.codec for curve in curves}.values()]
    conditioned = [codec for codec in codecs if None not in codec.preferences]
    if not conditioned or not args.viewer:
        return None
    codec, baselines = conditioned[0], [c for c in codecs if None in c.preferences]
    settings = [point.setting for point in next(c for c in curves if c.codec.identity == codec.identity).points]
    shown = args.viewer_qualities or [settings[len(settings) // 4], settings[len(settings) // 2]]
    settings = [setting for setting in settings if setting in shown] or settings[:1]
    preferences = sorted(set(args.viewer_preferences))
    images = []
    for index in spread(args.viewer, len(dataset.items)):
        item = dataset.items[index]
        original = open_rgb(item.path)
        points = []
        for setting in settings:
            data = codec.encode(original, setting)
            decodes = zip(preferences, codec.decode(data, preferences), strict=True)
            points.append({
                "setting": setting,
                **_size(data, original),
                "decodes": [
                    {"preference": p, **_shown(dataset, item, image, original, _displayable(image))}
                    for p, image in decodes
                ],
                "baselines": [_baseline(dataset, item, baseline, original, len(data)) for baseline in baselines],
            })  # fmt: skip
        shown_original = {"src": _displayable(original), "predictions": _predictions(dataset, item, original)}
        images.append({"name": item.key, "size": original.size, "original": shown_original, "points": points})
    return {"dataset": dataset.name, "codec": codec.label, "images": images}


def _size(data: bytes, original: Image.Image) -> dict[str, float]:
    return {"bytes": len(data), "bpp": file_bpp(data, original)}


def _baseline(dataset: Dataset, item: Item, codec: CachedCodec, original: Image.Image, target: int) -> dict[str, Any]:
    """Return what another codec makes of an image at the file size nearest to ``target`` bytes."""
    setting = nearest_setting(codec, lambda s: len(codec.encode(original, s)), target)
    data = codec.encode(original, setting)
    (image,) = codec.decode(data, (None,))
    src = _data_uri(data, codec.media_type) if codec.media_type else _displayable(image)
    shown = _shown(dataset, item, image, original, src)
    return {"codec": codec.label, "setting": setting, **_size(data, original), **shown}


def _shown(dataset: Dataset, item: Item, image: Image.Image, original: Image.Image, src: str) -> dict[str, Any]:
    return {
        "src": src,
        "psnr": psnr(original, image),
        "predictions": _predictions(dataset, item, image),
    }


def _predictions(dataset: Dataset, item: Item, image: Image.Image) -> list[dict[str, Any]]:
    """Return the most likely class by every classifier, and whether it is correct."""
    predictions = []
    for evaluator in dataset.evaluators:
        if isinstance(evaluator, ClassificationEvaluator) and dataset.class_names:
            evaluator.reset()
            if process(evaluator, [item], [(item, image, image)], evaluator.prepare):
                continue  # it fails on this image
            best = evaluator.records[item.key]["top"][0]
            label = dataset.class_names[best] if best < len(dataset.class_names) else f"class {best}"
            predictions.append({"classifier": evaluator.name, "label": label, "correct": best == item.target})
    return predictions


def _displayable(image: Image.Image) -> str:
    """Return an image as a data URI that browsers can display."""
    buffer = io.BytesIO()
    if "avif" in features.get_supported():
        image.save(buffer, "AVIF", quality=92, subsampling="4:4:4", speed=6, max_threads=1)
        return _data_uri(buffer.getvalue(), "image/avif")
    image.save(buffer, "WEBP", lossless=True)
    return _data_uri(buffer.getvalue(), "image/webp")


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
