"""Images in and out: any Pillow-readable file to 8-bit RGB, to a tensor, and back to a file.

Pillow images here are mode RGB; tensors are float32 [1, 3, H, W] in [0, 1]. Color profiles are not applied, so
that a network sees the values it would see anywhere else: they are taken as sRGB, with a warning where the profile is
another. Of an animation the first frame is read.
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
_DESCRIBED = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")  # formats that Pillow writes EXIF into
_IMAGE_DESCRIPTION, _ORIENTATION = 0x010E, 0x0112  # EXIF tags
_IMAGE_WIDTH, _IMAGE_LENGTH = 0x0100, 0x0101  # TIFF tags
# A decoded image should not be degraded a second time. As AVIF, which Pillow cannot write without loss, it stays as
# near as with JPEG; speed 8 takes a quarter of the time of Pillow's 6 for 5 % more bytes. PNG level 1 is several times
# as quick as Pillow's 6, and on photographs hardly larger.
_NEAR = {"quality": 95, "subsampling": "4:4:4"}
_BAND = 2**16  # pixels that are worked on at a time
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "AVIF": {**_NEAR, "speed": 8},
    "JPEG": _NEAR,
    "MPO": _NEAR,
    "PNG": {"compress_level": 1},
    "TIFF": {"compression": "tiff_deflate"},
    "WEBP": {"lossless": True},
}


def open_rgb(
    source: str | os.PathLike | BinaryIO | Image.Image,
    too_large: Callable[[int, int], str | None] = lambda width, height: None,
) -> Image.Image:
    """A file (its path, or open), or a Pillow image of any mode, as 8-bit RGB, upright (EXIF orientation applied).

    Transparent images are composited on white, with a warning. 16-bit gray is scaled to 8 bits; mode I is taken
    as 16-bit, mode F as [0, 1] or, where finite values leave that range, as [0, 255]. ``too_large`` says, of a width
    and a height, what is wrong with them; it is asked before anything is decoded.

    Raises:
        ImageError: the file is missing, not an image, truncated or damaged, too large, or has no pixels; the message
            names it.
        TypeError: ``source`` is something else, as an array or a file's bytes are.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, getattr(source, "filename", "") or f"image of mode {source.mode}", too_large)
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise TypeError(
            f"expected a Pillow image, a path or an open file, got {type(source).__name__}; "
            "use Image.fromarray(...) for arrays, io.BytesIO(...) for bytes"
        )
    with opened(source) as image:
        return _to_rgb(image, source, too_large)


def upright_size(source: str | os.PathLike) -> tuple[int, int]:
    """Width and height that :func:`open_rgb` gives a file, from its header alone. Raises ImageError."""
    with opened(source) as image:
        size = image.size
        if image.format == "TIFF":  # in newer Pillows their size is upright already: take it as stored
            size = image.tag_v2[_IMAGE_WIDTH], image.tag_v2[_IMAGE_LENGTH]
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return size[::-1] if turned else size


def is_turned(source: str | os.PathLike) -> bool:
    """Whether :func:`open_rgb` turns or mirrors a file's image, as its EXIF orientation says. Raises ImageError."""
    with opened(source) as image:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)


def description(source: str | os.PathLike) -> str | None:
    """What :func:`save_image` wrote into a file beside the image; None: nothing. Raises ImageError."""
    with opened(source) as image:
        return image.getexif().get(_IMAGE_DESCRIPTION)


@contextlib.contextmanager
def opened(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """Pillow's view of a file, closed after; whatever goes wrong with it, here or inside, is a ImageError (but for
    warnings that the user's filters turn into errors: they pass)."""
    try:
        with Image.open(source) as image:
            yield image
    except (ImageError, MemoryError, Warning):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{source}: not an image that Pillow can read") from None
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them into: SyntaxError, KeyError
        raise ImageError(f"{source}: damaged image: {error}") from None


def middle(image: Image.Image, side: int) -> Image.Image:
    """The middle of an image, of at most ``side`` pixels each way."""
    width, height = min(side, image.width), min(side, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _to_rgb(
    image: Image.Image, name: str | os.PathLike, too_large: Callable[[int, int], str | None]
) -> Image.Image:
    if not image.width or not image.height:
        raise ImageError(f"{name}: an image of {image.width}x{image.height} has no pixels")
    if complaint := too_large(*image.size):
        raise ImageError(f"{name}: the image has {complaint}")
    try:
        image.load()
        _warn_of_profile(image)
        return _convert(ImageOps.exif_transpose(image))
    except (MemoryError, Warning):
        raise
    except Exception as error:  # see opened
        raise ImageError(f"{name}: damaged image: {error}") from None


def _warn_of_profile(image: Image.Image) -> None:
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "LAB":  # that one is converted
        return
    from PIL import ImageCms

    try:
        known = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, TypeError, ImageCms.PyCMSError):  # no profile at all
        return
    if "srgb" not in known.lower():
        warnings.warn("color profiles other than sRGB are not applied: colors may look different", stacklevel=1)


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;"):
        return _scaled_gray(image).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts these only to their straight forms
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        if image.getextrema()[3][0] == 255:
            return image.convert("RGB")
        _warn_transparent()
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scaled_gray(image: Image.Image) -> Image.Image:
    """Modes I, I;16* and F to L. Pillow's own conversion clips at 255 instead of scaling."""
    raw = np.asarray(image)
    values = raw.astype(np.float64)
    if image.mode == "F":
        known = np.isfinite(values)  # one infinite value must not decide how the others are taken
        unit = 0 <= values.min(where=known, initial=0) and values.max(where=known, initial=0) <= 1
        values = np.nan_to_num(values * 255 if unit else values)
    else:
        values = values / 257  # 65535 / 255
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and (raw == transparent).any():
        _warn_transparent()
        values[raw == transparent] = 255
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))


def _warn_transparent() -> None:
    # One text from one place: Python's warning filters show it once per run.
    warnings.warn("transparent images are composited on white", stacklevel=1)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> float32 [1, 3, H, W] in [0, 1]."""
    import torch

    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array.permute(2, 0, 1)[None].float() / 255


def to_levels(image: Image.Image, multiple: int) -> Tensor:
    """RGB image -> uint8 [1, 3, H, W], channels last in memory, the last row and column repeated until H and W are
    multiples of ``multiple``."""
    import torch

    padding = (0, -image.height % multiple), (0, -image.width % multiple), (0, 0)
    return torch.from_numpy(np.pad(np.asarray(image), padding, mode="edge"))[None].permute(0, 3, 1, 2)


def from_tensor(x: Tensor) -> Image.Image:
    """[1, 3, H, W] or [3, H, W] -> RGB image: clamped to [0, 1] and rounded to the nearest of 256 levels."""
    import torch

    x = x.detach().reshape(x.shape[-3:]).permute(1, 2, 0)
    levels = torch.empty(x.shape, dtype=torch.uint8, device="cpu")
    step = -(-_BAND // x.shape[1]) if x.device.type == "cpu" else len(x)  # the steps' results stay in the cache
    for rows, out in zip(x.split(step), levels.split(step), strict=True):
        out.copy_(rows.float().clamp(0, 1).mul_(255).round_().byte())
    return Image.fromarray(levels.numpy())


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Replicate the last row and column of [B, C, H, W] until H and W are multiples of ``multiple``."""
    import torch.nn.functional as F

    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def image_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that a file's extension asks for; PNG where it has none.

    Raises ImageError for an extension that Pillow cannot write, or not so that it reads the same image back.
    """
    suffix = Path(path).suffix.lower()
    if not suffix:
        return "PNG"
    name = Image.registered_extensions().get(suffix)
    if name not in Image.SAVE or not _survives(name):
        raise ImageError(f"{path}: cannot write {suffix} images; try .png .webp .tiff .bmp .ppm or .jpg")
    return name


@functools.cache
def _survives(name: str) -> bool:
    """Whether a small color image comes back from a format: not from those that hold other sizes (ICO, ICNS), no
    colors (MSP, Palm) or paper (PDF), nor from those whose writer or reader is missing here (WMF, EPS)."""
    color = (200, 60, 30)
    image = Image.new("RGB", (24, 16), color)
    try:
        with Image.open(io.BytesIO(_encoded(image, name))) as decoded:
            back = np.asarray(decoded.convert("RGB")).astype(int)
    except (MemoryError, Warning):
        raise
    except Exception:  # Pillow's writers and readers raise whatever they like
        return False
    return back.shape == (16, 24, 3) and bool(np.abs(back - color).max() < 16)


def _encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **_SAVE_OPTIONS.get(name, {}), **options)
    return buffer.getvalue()


def holds_description(path: str | os.PathLike) -> bool:
    """Whether files with this path's extension can say what they are (AVIF, JPEG, MPO, PNG, TIFF, WebP)."""
    return image_format(path) in _DESCRIBED


def save_image(image: Image.Image, path: str | os.PathLike, described: str = "", name: str | None = None) -> None:
    """Write an image in the format of the path's extension (PNG without one), whole or not at all.

    JPEG, MPO and AVIF are the lossy choices, written at quality 95 without chroma subsampling; GIF has 256 colors.
    ``described`` goes with it as EXIF, for :func:`description`, in the formats :func:`holds_description` names.
    ``name`` is Pillow's name of the format, where the extension is not to decide.

    Raises:
        ImageError: the extension is of no format that Pillow writes, or that format cannot hold the image.
        ugicm.commands.batch.WriteError: the file cannot be written.
    """
    name = name or image_format(path)
    options = {}
    if described and name in _DESCRIBED:
        options["exif"] = Image.Exif()
        options["exif"][_IMAGE_DESCRIPTION] = described
    try:
        data = _encoded(image, name, **options)
    except (MemoryError, Warning):
        raise
    except Exception as error:  # Pillow's writers raise whatever a size beyond their format leads them into
        size = f"{image.width}x{image.height}"
        raise ImageError(f"{path}: a {size} image cannot be written as {name}: {error}") from None
    atomic.write(path, data)
