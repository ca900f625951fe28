"""What the report's viewer shows: a few images as original, decoded along the preference, and as other codecs have
them at the nearest size.

Other codecs' images are their real files where browsers show that format. Everything else travels as AVIF at
quality 92 without chroma subsampling (WebP, lossless, where this Pillow has no AVIF): numbers beside an image are of
the exact decode, not of this copy of it.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, features

from ugicm.arguments import spread
from ugicm.evaluation.codecs import Contender, nearest_setting
from ugicm.evaluation.metrics import bits_per_pixel, psnr
from ugicm.evaluation.results import finite
from ugicm.images import open_rgb
from ugicm.report.curves import Cache, Cached, Curve, Dataset

LARGEST = 1_200_000  # pixels of an image that is shown whole


def viewer(dataset: Dataset, curves: Sequence[Curve], args: argparse.Namespace, cache: Cache) -> dict[str, Any] | None:
    """Images of a data set with all their decodes; None where there is no codec with preferences, or none are
    wanted.

    Streams come from the cache, and those that the search for the nearest size writes go there.
    """
    contenders = list({id(curve.contender): curve.contender for curve in curves}.values())
    ours = [c for c in contenders if None not in c.viewers]
    if not ours or not args.viewer:
        return None
    codec, anchors = ours[0], [Cached(c, cache) for c in contenders if None in c.viewers]
    settings = [point.setting for point in next(c for c in curves if c.contender is codec).points]
    wanted = args.viewer_qualities or [settings[i] for i in sorted({len(settings) // 4, len(settings) // 2})]
    wanted = [setting for setting in settings if setting in wanted] or settings[:1]
    small = [item for item in dataset.items if _pixels(dataset, item.key) <= LARGEST] or dataset.items
    images = [
        _image(dataset, small[i], Cached(codec, cache), wanted, sorted(set(args.viewer_betas)), anchors)
        for i in spread(args.viewer, len(small))
    ]
    return {"dataset": dataset.name, "codec": codec.label, "images": images}


def _pixels(dataset: Dataset, key: str) -> int:
    width, height = dataset.sizes[key]
    return width * height


def _image(dataset: Dataset, item, codec: Cached, settings, betas, anchors: Sequence[Cached]) -> dict[str, Any]:
    original = open_rgb(item.path)
    points = []
    for setting in settings:
        data = codec.encode(original, setting)
        decoded = codec.decode(data, betas)
        points.append(
            {
                "setting": setting,
                "bytes": len(data),
                "bpp": bits_per_pixel(data, original),
                "decodes": [
                    {"beta": beta, **_shown(dataset, item, image, original)}
                    for beta, image in zip(betas, decoded, strict=True)
                ],
                "anchors": [_anchor(dataset, item, anchor, original, len(data)) for anchor in anchors],
            }
        )
    shown = {"src": displayable(original), "verdicts": _verdicts(dataset, item, original)}
    return {"name": item.key, "size": original.size, "original": shown, "points": points}


def _anchor(dataset: Dataset, item, anchor: Contender, original: Image.Image, target: int) -> dict[str, Any]:
    """Another codec at the setting whose file is nearest in size."""
    setting = nearest_setting(anchor, lambda s: len(anchor.encode(original, s)), target)
    data = anchor.encode(original, setting)
    (image,) = anchor.decode(data, (None,))
    described = _shown(dataset, item, image, original, data if anchor.media_type else None, anchor.media_type)
    size = {"bytes": len(data), "bpp": bits_per_pixel(data, original)}
    return {"codec": anchor.label, "setting": setting, **size, **described}


def _shown(dataset, item, image, original, data: bytes | None = None, media_type: str | None = None) -> dict[str, Any]:
    return {
        "src": _uri(data, media_type) if data else displayable(image),
        "psnr": finite(psnr(original, image)),
        "verdicts": _verdicts(dataset, item, image),
    }


def _verdicts(dataset: Dataset, item, image: Image.Image) -> list[dict[str, Any]]:
    """What classifiers take an image for, and whether that is so."""
    verdicts = []
    for evaluator in dataset.evaluators:
        if hasattr(evaluator, "judge") and dataset.class_names:
            evaluator.reset()
            evaluator.process([item], [evaluator.prepare(item, image, image)])
            first = evaluator.records[item.key]["top"][0]
            name = dataset.class_names[first] if first < len(dataset.class_names) else f"class {first}"
            verdicts.append({"judge": evaluator.name, "says": name, "right": first == item.target})
    return verdicts


def displayable(image: Image.Image) -> str:
    """An image as a data URI that browsers show."""
    buffer = io.BytesIO()
    if "avif" in features.get_supported():
        image.save(buffer, "AVIF", quality=92, subsampling="4:4:4", speed=6, max_threads=1)
        return _uri(buffer.getvalue(), "image/avif")
    image.save(buffer, "WEBP", lossless=True)
    return _uri(buffer.getvalue(), "image/webp")


def _uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
