"""Read image files, and convert between Pillow images and tensors.

Pillow images in this package have mode RGB and are in sRGB; :mod:`ugicm.color` converts others. Tensors are float32 [1,
3, H, W] in [0, 1]. Of a file with several pages or frames the first is read.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageStat

from ugicm import color, containers
from ugicm.errors import ImageError, MissingPackageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

    from ugicm.bitstream import Source

SOFTWARE, _ORIENTATION = 0x0131, 0x0112  # EXIF tags
_IMAGE_WIDTH, _IMAGE_LENGTH, _SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = (
    0x0100,
    0x0101,
    0x00FE,
    0x014A,
    0xC612,
)  # TIFF tags
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION = 0x0102, 0x011C
_REDUCED, _MASK = 1, 4  # bits of the subfile type
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_BAND = 2**16  # pixels converted at a time


@dataclass(frozen=True)
class SourceImage:
    """An image as it is compressed.

    Attributes:
        rgb: RGB image in sRGB with the EXIF orientation applied.
        alpha: image of mode L, or None if the image is opaque.
        frames: number of pages or frames of the file, of which this is the first.
        gray: whether the source is gray.
        exif, xmp: metadata blocks, empty if there are none.
    """

    rgb: Image.Image
    alpha: Image.Image | None = None
    frames: int = 1
    gray: bool = False
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.size

    def visible(self) -> Image.Image:
        """Return the image with the mean of its visible pixels where it is transparent: they take few bits."""
        if self.alpha is None:
            return self.rgb
        seen = self.alpha.point(lambda level: 255 * (level > 0))
        mean = ImageStat.Stat(self.rgb, seen).mean if seen.getbbox() else (0, 0, 0)
        filled = Image.new("RGB", self.rgb.size, tuple(map(round, mean)))
        filled.paste(self.rgb, mask=seen)
        return filled

    def flattened(self, background: str = "white") -> Image.Image:
        """Return the image composited on a color, if it has an alpha."""
        return self.rgb if self.alpha is None else color.composite(self.rgb, self.alpha, background)


def open_rgb(
    source: Source | Image.Image,
    too_large: Callable[[int, int], str | None] = lambda width, height: None,
) -> Image.Image:
    """Return a file, or a Pillow image of any mode, as an 8-bit RGB image in sRGB, with the EXIF orientation applied.

    Transparent images are composited on white, with a warning. See :func:`read` for arguments and errors.
    """
    image = read(source, too_large)
    if image.alpha is not None:
        # Raised from one place, so that Python's warning filters show it once per run.
        warnings.warn("transparent images are composited on white", stacklevel=1)
    return image.flattened()


def read(
    source: Source | Image.Image,
    too_large: Callable[[int, int], str | None] = lambda width, height: None,
) -> SourceImage:
    """Read a file, or convert a Pillow image of any mode.

    Warns of what is not kept: further pages and frames, and color spaces other than sRGB.

    Args:
        source: path, open binary file, bytes of a file, or Pillow image.
        too_large: returns why an image of a given width and height is too large, or None. Called before decoding.

    Raises:
        ImageError: the file is missing, not an image, truncated, corrupt or too large, has no pixels, or is a raw
            photograph of which Pillow reads only the preview. The message names the file.
        TypeError: ``source`` is of another type, such as an array.
    """
    if isinstance(source, Image.Image):
        return _to_source(source, getattr(source, "filename", "") or f"image of mode {source.mode}", too_large)
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
        raise TypeError(
            f"expected a Pillow image, a path, an open file or bytes, got {type(source).__name__}; "
            "use Image.fromarray(...) for arrays"
        )
    name = _name_of(source)
    with open_image(source) as image:
        frames = containers.count_frames(image)
        if containers.is_preview(image, frames):
            size = f"{image.width}x{image.height}"
            raise ImageError(f"{name}: Pillow reads only the preview of this raw image, {size}; convert it to TIFF")
        if frames > 1:
            warnings.warn(f"only the first of {frames} pages or frames is read", stacklevel=1)
        return replace(_to_source(image, name, too_large), frames=frames)


def upright_size(source: str | os.PathLike) -> tuple[int, int]:
    """Return width and height of a file as :func:`open_rgb` opens it, from its header alone. Raises ImageError."""
    with open_image(source) as image:
        size = image.size
        if image.format == "TIFF":  # newer versions of Pillow apply the orientation to the size of TIFF files
            size = image.tag_v2[_IMAGE_WIDTH], image.tag_v2[_IMAGE_LENGTH]
        return size[::-1] if _orientation(image) in (5, 6, 7, 8) else size


def is_turned(source: str | os.PathLike) -> bool:
    """Return whether :func:`open_rgb` rotates or mirrors a file because of its EXIF orientation. Raises ImageError."""
    with open_image(source) as image:
        return _orientation(image) in _UPRIGHT


def software(source: str | os.PathLike) -> str | None:
    """Return the EXIF software of a file, as :mod:`ugicm.image_writer` writes it, or None. Raises ImageError."""
    with open_image(source) as image:
        return image.getexif().get(SOFTWARE)


@contextlib.contextmanager
def open_image(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """Open a file with Pillow, and close it at the end of the block.

    Exceptions raised by Pillow, also inside the block, become ImageError. Warnings that the user's filters turn into
    exceptions are raised as they are.
    """
    name = _name_of(source)
    try:
        opened, info = containers.prepare(source)
        with Image.open(opened) as image:
            image.info.update(info)
            yield image
    except (ImageError, MemoryError, Warning):
        raise
    except MissingPackageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error} To accept it, set PIL.Image.MAX_IMAGE_PIXELS") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # for corrupt files Pillow raises exceptions of many types: SyntaxError, KeyError ...
        raise ImageError(f"{name}: corrupt or unsupported image: {first_line(error)}") from None


def _name_of(source: Any) -> str | os.PathLike:
    return source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "image data")


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the center of an image, at most ``side`` pixels wide and high."""
    width, height = min(side, image.width), min(side, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _to_source(image: Image.Image, name: str | os.PathLike, too_large: Callable[[int, int], str | None]) -> SourceImage:
    if not image.width or not image.height:
        raise ImageError(f"{name}: an image of {image.width}x{image.height} has no pixels")
    if reason := too_large(*image.size):
        raise ImageError(f"{name}: the image has {reason}")
    try:
        containers.fix_planes(image)
        image.load()
        rgb, alpha = color.split_alpha(image)
        turn = _UPRIGHT.get(_orientation(image))
        exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    except (MemoryError, Warning):
        raise
    except Exception as error:  # see open_image
        raise ImageError(f"{name}: corrupt or unsupported image: {first_line(error)}") from None
    rgb.info = {}  # what it says has been applied
    if turn is not None:
        rgb, alpha = rgb.transpose(turn), alpha and alpha.transpose(turn)
    gray = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")
    return SourceImage(rgb, alpha, gray=gray, exif=exif, xmp=xmp if isinstance(xmp, bytes) else b"")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none or EXIF cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # see open_image
        return 1


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
