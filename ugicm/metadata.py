"""Alpha, EXIF and XMP of an image: from the source into the boxes of a bitstream, and back onto decoded images."""

from __future__ import annotations

import io
import re
import struct
import warnings

from PIL import Image

from ugicm.bitstream import Bitstream
from ugicm.errors import StreamError
from ugicm.images import SourceImage
from ugicm.tiling import Box

LIMIT = 2**20  # bytes of EXIF or XMP that are kept
_ORIENTATION, _EXIF_HEADER = 0x0112, b"Exif\0\0"


def to_boxes(source: SourceImage) -> dict[str, bytes]:
    """Return the boxes of an image.

    EXIF and XMP say that the image is upright. Longer than LIMIT, they are dropped with a warning.
    """
    boxes = {}
    if source.alpha is not None:
        buffer = io.BytesIO()
        source.alpha.save(buffer, "PNG", optimize=True)
        boxes["alpha"] = buffer.getvalue()
    xmp = re.sub(rb'tiff:Orientation(="|>)[0-9]', rb"tiff:Orientation\g<1>1", source.xmp)
    for name, content in (("exif", upright_exif(source.exif)), ("xmp", xmp)):
        if len(content) > LIMIT:
            warnings.warn(f"EXIF and XMP of more than {LIMIT >> 20} MiB are dropped", stacklevel=1)
        elif content:
            boxes[name] = content
    return boxes


def upright_exif(exif: bytes) -> bytes:
    """Return an EXIF block, without its header, in which the orientation is 1. All else keeps its bytes and places."""
    exif = bytearray(exif.removeprefix(_EXIF_HEADER))
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack_from(order + "HHI", exif, at) == (_ORIENTATION, 3, 1):
                struct.pack_into(order + "H", exif, at + 8, 1)
    except (struct.error, TypeError):  # not EXIF: nothing would read an orientation from it
        pass
    return bytes(exif)


def restore(image: Image.Image, parsed: Bitstream, view: Box) -> Image.Image:
    """Return the ``view`` of a decoded image as the source was: gray (mode L), with alpha, EXIF and XMP in ``info``.

    Raises StreamError if the alpha is invalid.
    """
    if parsed.gray:
        image = image.convert("L")
    if "alpha" in parsed.boxes:
        image.putalpha(_alpha_of(parsed).crop((view.left, view.top, view.right, view.bottom)))
    for name in ("exif", "xmp"):
        if name in parsed.boxes:
            image.info[name] = _EXIF_HEADER + parsed.boxes[name] if name == "exif" else parsed.boxes[name]
    return image


def _alpha_of(parsed: Bitstream) -> Image.Image:
    try:
        with Image.open(io.BytesIO(parsed.boxes["alpha"]), formats=["PNG"]) as alpha:
            if (alpha.mode, *alpha.size) == ("L", parsed.width, parsed.height):  # before anything is allocated
                alpha.load()
                return alpha.copy()
    except Exception:  # for corrupt files Pillow raises exceptions of many types
        pass
    raise StreamError("corrupt bitstream: its alpha is not a PNG file of the image's size")
