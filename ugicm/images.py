"""Read and write image files, and convert between Pillow images and tensors.

Pillow images in this package have mode RGB. Tensors are float32 [1, 3, H, W] in [0, 1]. Color profiles are not applied:
values are taken as sRGB, with a warning if the profile of the file is another one. Of an animation, the first frame is
read.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ugicm import atomic
from ugicm.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_EXIF_FORMATS = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")  # formats that Pillow writes EXIF into
_IMAGE_DESCRIPTION, _ORIENTATION = 0x010E, 0x0112  # EXIF tags
_IMAGE_WIDTH, _IMAGE_LENGTH = 0x0100, 0x0101  # TIFF tags
_BAND = 2**16  # pixels converted at a time
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


def open_rgb(
    source: str | os.PathLike | BinaryIO | Image.Image,
    too_large: Callable[[int, int], str | None] = lambda width, height: None,
) -> Image.Image:
    """Return a file, or a Pillow image of any mode, as an 8-bit RGB image with the EXIF orientation applied.

    Transparent images are composited on white, with a warning. 16-bit gray is scaled to 8 bits. Mode I is taken as
    16-bit. Mode F is taken as [0, 1], or as [0, 255] if finite values exceed [0, 1].

    Args:
        source: path, open binary file, or Pillow image.
        too_large: returns why an image of a given width and height is too large, or None. Called before decoding.

    Raises:
        ImageError: the file is missing, not an image, truncated, corrupt or too large, or has no pixels. The message
            names the file.
        TypeError: ``source`` is of another type, such as an array or bytes.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, getattr(source, "filename", "") or f"image of mode {source.mode}", too_large)
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise TypeError(
            f"expected a Pillow image, a path or an open file, got {type(source).__name__}; "
            "use Image.fromarray(...) for arrays, io.BytesIO(...) for bytes"
        )
    with open_image(source) as image:
        return _to_rgb(image, source, too_large)


def upright_size(source: str | os.PathLike) -> tuple[int, int]:
    """Return width and height of a file as :func:`open_rgb` opens it, from its header alone. Raises ImageError."""
    with open_image(source) as image:
        size = image.size
        if image.format == "TIFF":  # newer versions of Pillow apply the orientation to the size of TIFF files
            size = image.tag_v2[_IMAGE_WIDTH], image.tag_v2[_IMAGE_LENGTH]
        transposed = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return size[::-1] if transposed else size


def is_turned(source: str | os.PathLike) -> bool:
    """Return whether :func:`open_rgb` rotates or mirrors a file because of its EXIF orientation. Raises ImageError."""
    with open_image(source) as image:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)


def description(source: str | os.PathLike) -> str | None:
    """Return the EXIF description of a file, as :func:`save_image` writes it, or None. Raises ImageError."""
    with open_image(source) as image:
        return image.getexif().get(_IMAGE_DESCRIPTION)


@contextlib.contextmanager
def open_image(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """Open a file with Pillow, and close it at the end of the block.

    Exceptions raised by Pillow, also inside the block, become ImageError. Warnings that the user's filters turn into
    exceptions are raised as they are.
    """
    try:
        with Image.open(source) as image:
            yield image
    except (ImageError, MemoryError, Warning):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{source}: not an image that Pillow can read") from None
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # for corrupt files Pillow raises exceptions of many types: SyntaxError, KeyError ...
        raise ImageError(f"{source}: corrupt image: {error}") from None


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the center of an image, at most ``side`` pixels wide and high."""
    width, height = min(side, image.width), min(side, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _to_rgb(image: Image.Image, name: str | os.PathLike, too_large: Callable[[int, int], str | None]) -> Image.Image:
    if not image.width or not image.height:
        raise ImageError(f"{name}: an image of {image.width}x{image.height} has no pixels")
    if reason := too_large(*image.size):
        raise ImageError(f"{name}: the image has {reason}")
    try:
        image.load()
        _warn_of_profile(image)
        return _convert(ImageOps.exif_transpose(image))
    except (MemoryError, Warning):
        raise
    except Exception as error:  # see open_image
        raise ImageError(f"{name}: corrupt image: {error}") from None


def _warn_of_profile(image: Image.Image) -> None:
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "LAB":  # LAB images are converted
        return
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, TypeError, ImageCms.PyCMSError):  # not a profile
        return
    if "srgb" not in name.lower():
        warnings.warn("color profiles other than sRGB are not applied: colors may look different", stacklevel=1)


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;"):
        return _scaled_gray(image).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # Pillow converts premultiplied alpha only to straight alpha
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        if image.getextrema()[3][0] == 255:
            return image.convert("RGB")
        _warn_transparent()
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scaled_gray(image: Image.Image) -> Image.Image:
    """Convert modes I, I;16* and F to L. Pillow's own conversion clips at 255 instead of scaling."""
    raw = np.asarray(image)
    values = raw.astype(np.float64)
    if image.mode == "F":
        finite = np.isfinite(values)
        unit = 0 <= values.min(where=finite, initial=0) and values.max(where=finite, initial=0) <= 1
        values = np.nan_to_num(values * 255 if unit else values)
    else:
        values = values / 257  # 65535 / 255
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and (raw == transparent).any():
        _warn_transparent()
        values[raw == transparent] = 255
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))


def _warn_transparent() -> None:
    # Raised from one place, so that Python's warning filters show it once per run.
    warnings.warn("transparent images are composited on white", stacklevel=1)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to float32 [1, 3, H, W] in [0, 1]."""
    import torch

    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array.permute(2, 0, 1)[None].float() / 255


def to_levels(image: Image.Image, multiple: int) -> Tensor:
    """Convert an RGB image to uint8 [1, 3, H, W] in channels-last memory format.

    The last row and column are replicated until H and W are multiples of ``multiple``.
    """
    import torch

    padding = (0, -image.height % multiple), (0, -image.width % multiple), (0, 0)
    return torch.from_numpy(np.pad(np.asarray(image), padding, mode="edge"))[None].permute(0, 3, 1, 2)


def from_tensor(x: Tensor) -> Image.Image:
    """Convert [1, 3, H, W] or [3, H, W] to an RGB image. Values are clamped to [0, 1] and rounded to 8 bits."""
    import torch

    x = x.detach().reshape(x.shape[-3:]).permute(1, 2, 0)
    levels = torch.empty(x.shape, dtype=torch.uint8, device="cpu")
    step = -(-_BAND // x.shape[1]) if x.device.type == "cpu" else len(x)  # intermediate results stay in the cache
    for rows, out in zip(x.split(step), levels.split(step), strict=True):
        out.copy_(rows.float().clamp(0, 1).mul_(255).round_().byte())
    return Image.fromarray(levels.numpy())


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Replicate the last row and column of [B, C, H, W] until H and W are multiples of ``multiple``."""
    import torch.nn.functional as F

    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


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


def holds_description(path: str | os.PathLike) -> bool:
    """Return whether a file with the extension of ``path`` can hold an EXIF description."""
    return image_format(path) in _EXIF_FORMATS


def save_image(image: Image.Image, path: str | os.PathLike, description: str = "", name: str | None = None) -> None:
    """Write an image file atomically.

    JPEG, MPO and AVIF are written at quality 95 without chroma subsampling, GIF with 256 colors, other formats without
    loss.

    Args:
        image: RGB image.
        path: output file.
        description: EXIF description. Ignored if the format cannot hold it; see :func:`holds_description`.
        name: Pillow's name of the format (default: by extension, PNG if there is none).

    Raises:
        ImageError: Pillow cannot write the format, or the format cannot hold the image.
        ugicm.atomic.WriteError: the file cannot be written.
    """
    name = name or image_format(path)
    options = {}
    if description and name in _EXIF_FORMATS:
        options["exif"] = Image.Exif()
        options["exif"][_IMAGE_DESCRIPTION] = description
    try:
        data = _encoded(image, name, **options)
    except (MemoryError, Warning):
        raise
    except Exception as error:  # an image too large for the format, for example; see open_image
        size = f"{image.width}x{image.height}"
        raise ImageError(f"{path}: a {size} image cannot be written as {name}: {error}") from None
    atomic.write(path, data)
