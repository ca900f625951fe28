"""Images stored as they are: a lossless file as the string of a bitstream, for images that are no photographs."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ugicm import metadata
from ugicm.bitstream import Bitstream
from ugicm.errors import StreamError
from ugicm.images import SourceImage

FEW_COLORS = 256
MANY_REPEATED = 0.5  # share of pixels that equal their left neighbor


def pack(source: SourceImage) -> bytes | None:
    """Return a bitstream that stores an image without loss; None for a photograph, which would be large."""
    image = source.visible()
    if image.getcolors(FEW_COLORS) is None:
        levels = np.asarray(image)
        if np.mean((levels[:, 1:] == levels[:, :-1]).all(axis=2)) < MANY_REPEATED:
            return None
    files = []
    for name, options in (("PNG", {"optimize": True}), ("WEBP", {"lossless": True})):
        buffer = io.BytesIO()
        if name == "PNG" or max(image.size) <= 16383:
            (image.convert("L") if source.gray else image).save(buffer, name, **options)
            files.append(buffer.getvalue())
    boxes = metadata.to_boxes(source)
    return Bitstream(
        *image.size, bytes(3), 0.0, 0, (0,), (min(files, key=len),), source.gray, stored=True, boxes=boxes
    ).pack()  # fmt: skip


def unpack(parsed: Bitstream) -> Image.Image:
    """Return the RGB image of a bitstream that stores it. Raises StreamError."""
    try:
        with Image.open(io.BytesIO(parsed.strings[0]), formats=["PNG", "WEBP"]) as image:
            if image.size == (parsed.width, parsed.height):  # before anything is allocated
                return image.convert("RGB")
    except Exception:  # for corrupt files Pillow raises exceptions of many types
        pass
    raise StreamError("corrupt bitstream: what it stores is not a PNG or WebP file of the image's size")
