"""More bits for a part of an image: elsewhere the image is replaced by what the lowest quality leaves of it.

A bitstream has one quality. Detail that is not in the image costs no bits, so that an image whose unimportant part has
passed through the codec at quality 0 can be coded at a higher quality in the same number of bytes.

>>> data = codec.compress(emphasize(codec, "photo.jpg", mask), quality=0.5)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ugicm import bitstream, images
from ugicm.codec import Codec
from ugicm.conversion import Array, ImageLike, to_source
from ugicm.images import SourceImage
from ugicm.preference import to_beta


def emphasize(codec: Codec, image: ImageLike | SourceImage | Array, quality_map: Any) -> SourceImage:
    """Return an image to compress, whose detail is lowered where a map is black.

    Args:
        codec: what the image will be compressed with.
        image: as ``Codec.compress`` takes it.
        quality_map: 1 or white where the image keeps its detail, 0 or black where it is that of quality 0: a float
            array [H, W] in [0, 1], or a gray image, of the upright image's size.

    Raises ValueError for a map of another size or values outside of [0, 1], or a model with a single rate.
    """
    if not codec.has_quality:
        raise ValueError("a quality map needs a model of all rates, and this one has a single rate")
    source = image if isinstance(image, SourceImage) else images.read(to_source(image), bitstream.too_large)
    weight = to_beta(quality_map, source.size, "quality map")
    levels = np.rint(255 * np.broadcast_to(weight.squeeze().numpy(), source.size[::-1])).astype(np.uint8)
    low = codec.decompress(codec.compress(source.rgb.convert("RGB"), 0.0))
    return replace(source, rgb=Image.composite(source.rgb, low.convert(source.rgb.mode), Image.fromarray(levels)))
