"""Images, arrays and tensors, alone or in batches, as a codec takes and gives them.

============  =====================================================================  ================================
              image                                                                  batch
============  =====================================================================  ================================
Pillow        any mode                                                               list or tuple
file          path, bytes or open binary file                                        list or tuple
NumPy array   uint8 [H, W, 3]; also [3, H, W], unless W is 3                         [N, H, W, 3], [N, 3, H, W], list
tensor        uint8 [3, H, W], on any device                                         [N, 3, H, W], list
============  =====================================================================  ================================

Decoded images are Pillow images, arrays [H, W, 3] or tensors [3, H, W] on the CPU, both uint8.
"""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ugicm.bitstream import Source

ImageLike: TypeAlias = Image.Image | Source
Array: TypeAlias = np.ndarray | Tensor
Preference: TypeAlias = float | str | Image.Image | Array
Region: TypeAlias = tuple[int, int, int, int]
Output: TypeAlias = Literal["pil", "numpy", "tensor"]


def batch_of(source: Any) -> Sequence[Any] | None:
    """Return the images or bitstreams of a batch, or None if ``source`` is a single one."""
    if isinstance(source, (np.ndarray, Tensor)):
        return list(source) if source.ndim == 4 else None
    return source if isinstance(source, (list, tuple)) else None


def to_source(image: ImageLike | Array) -> Image.Image | str | os.PathLike[str] | BinaryIO:
    """Return an image as :func:`ugicm.images.read` takes it. Raises ValueError for an array of other shape or type."""
    if isinstance(image, Tensor):
        return _from_array(image.detach().cpu().numpy(), "tensor", channels_first=True)
    if isinstance(image, np.ndarray):
        return _from_array(image, "array", channels_first=image.shape[-1:] != (3,))
    return io.BytesIO(image) if isinstance(image, (bytes, bytearray, memoryview)) else image


def _from_array(array: np.ndarray, kind: str, channels_first: bool) -> Image.Image:
    levels = np.moveaxis(array, 0, -1) if channels_first and array.ndim == 3 else array
    if levels.dtype != np.uint8 or levels.ndim != 3 or levels.shape[2] != 3:
        shape = "[3, H, W]" if kind == "tensor" else "[H, W, 3]"
        raise ValueError(f"the image is a {array.dtype} {kind} of shape {list(array.shape)}, must be uint8 {shape}")
    return Image.fromarray(np.ascontiguousarray(levels))


def to_integer(value: Any, name: str) -> int:
    """Return an argument as an integer. Raises TypeError for a number or object that is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, must be an integer") from None


def check_output(output: str) -> None:
    """Raise ValueError for the name of no form of output."""
    if output not in get_args(Output):
        raise ValueError(f"output {output!r} not found; available: {', '.join(get_args(Output))}")


def from_image(image: Image.Image, output: Output) -> Any:
    """Return a decoded image in the form that was asked for."""
    if output == "pil":
        return image
    levels = np.array(image.convert("RGB"))
    return levels if output == "numpy" else torch.from_numpy(levels).permute(2, 0, 1).contiguous()
