"""Write image files, with the metadata that a decoded image carries."""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ugicm import atomic, color
from ugicm.errors import ImageError
from ugicm.images import SOFTWARE

# Formats that Pillow writes EXIF, XMP and color profiles into.
_METADATA_FORMATS = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
_ALPHA_FORMATS = ("AVIF", "PNG", "TIFF", "WEBP")
_TIFF_XMP = 700  # tag
# Lossless if Pillow can. AVIF at speed 8 takes a quarter of the default's time for 5 % more bytes. PNG at level 1 is
# several times faster than at the default level, and hardly larger for photographs.
_NEARLY_LOSSLESS = {"quality": 95, "subsampling": "4:4:4"}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "AVIF": {**_NEARLY_LOSSLESS, "speed": 8},
    "JPEG": _NEARLY_LOSSLESS,
    "MPO": _NEARLY_LOSSLESS,
    "PNG": {"compress_level": 1},
    "TIFF": {"compression": "tiff_deflate"},
    "WEBP": {"lossless": True},
}


def image_format(path: str | os.PathLike) -> str:
    """Return Pillow's name of the format of a file extension, PNG for none.

    Raises ImageError if Pillow cannot write the format, or cannot read a written image back.
    """
    suffix = Path(path).suffix.lower()
    if not suffix:
        return "PNG"
    name = Image.registered_extensions().get(suffix)
    if name not in Image.SAVE or not _can_round_trip(name):
        raise ImageError(f"{path}: cannot write {suffix} images; try .png .webp .tiff .bmp .ppm or .jpg")
    return name


@functools.cache
def _can_round_trip(name: str) -> bool:
    """Return whether a small color image can be written in a format and read back.

    Rejects formats with other sizes (ICO, ICNS), without colors (MSP, Palm) or of pages (PDF), and those whose reader
    or writer is not installed (WMF, EPS).
    """
    color = (200, 60, 30)
    image = Image.new("RGB", (24, 16), color)
    try:
        with Image.open(io.BytesIO(_encoded(image, name))) as decoded:
            back = np.asarray(decoded.convert("RGB")).astype(int)
    except (MemoryError, Warning):
        raise
    except Exception:  # see open_image
        return False
    return back.shape == (16, 24, 3) and bool(np.abs(back - color).max() < 16)


def _encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **_SAVE_OPTIONS.get(name, {}), **options)
    return buffer.getvalue()


def holds_software(path: str | os.PathLike) -> bool:
    """Return whether a file with the extension of ``path`` can hold the EXIF software."""
    return image_format(path) in _METADATA_FORMATS


def save_image(image: Image.Image, path: str | os.PathLike, software: str = "", name: str | None = None) -> None:
    """Write an image file atomically; ``path`` is - for standard output. See :func:`encode_image`.

    Raises:
        ImageError: Pillow cannot write the format, or the format cannot hold the image.
        ugicm.atomic.WriteError: the file cannot be written.
    """
    atomic.write(path, encode_image(image, path, software, name))


def encode_image(image: Image.Image, path: str | os.PathLike, software: str = "", name: str | None = None) -> bytes:
    """Return the contents of an image file.

    JPEG, MPO and AVIF are written at quality 95 without chroma subsampling, GIF with 256 colors, other formats without
    loss. Formats that can hold them get a color profile (sRGB), and ``exif`` and ``xmp`` of ``image.info``. Where a
    format cannot hold alpha, the image is composited on white, with a warning.

    Args:
        image: of mode RGB, RGBA, L or LA.
        path: name of the file, for its format and for messages.
        software: EXIF software. Ignored if the format cannot hold it; see :func:`holds_software`.
        name: Pillow's name of the format (default: by extension, PNG if there is none).

    Raises ImageError if Pillow cannot write the format, or if the format cannot hold the image.
    """
    name = name or image_format(path)
    if image.mode in ("RGBA", "LA") and name not in _ALPHA_FORMATS:
        warnings.warn(f"{name} holds no alpha: transparent images are composited on white", stacklevel=1)
        info, image = image.info, color.composite(image.convert("RGB"), image.getchannel("A"), "white")
        image.info = info
    profile = {"icc_profile": color.srgb_profile()} if name in _METADATA_FORMATS and image.mode[0] != "L" else {}
    try:
        try:
            data = _encoded(image, name, **profile, **_metadata_options(image, name, software))
        except (MemoryError, Warning):
            raise
        except Exception:  # EXIF of odd types, XMP that is too long for JPEG: Pillow raises exceptions of many types
            if not image.info.keys() & {"exif", "xmp"}:
                raise
            warnings.warn(f"metadata that Pillow cannot write into {name} is dropped", stacklevel=1)
            image.info = {}
            data = _encoded(image, name, **profile, **_metadata_options(image, name, software))
    except (MemoryError, Warning):
        raise
    except Exception as error:  # an image too large for the format, for example
        size = f"{image.width}x{image.height}"
        raise ImageError(f"{path}: a {size} image cannot be written as {name}: {error}") from None
    return data


def _metadata_options(image: Image.Image, name: str, software: str) -> dict[str, Any]:
    """Return the options of ``Image.save`` that write the EXIF and XMP of an image."""
    options: dict[str, Any] = {}
    if name not in _METADATA_FORMATS:
        return options
    exif, xmp = Image.Exif(), image.info.get("xmp")
    exif.load(image.info.get("exif", b""))
    if software:
        exif[SOFTWARE] = software
    if xmp and name == "TIFF":
        exif[_TIFF_XMP] = xmp
    elif xmp and name == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif xmp:
        options["xmp"] = xmp
    return options | ({"exif": exif} if len(exif) else {})
