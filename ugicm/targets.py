"""Compression to a size or to a PSNR: a search for the quality, with one analysis of the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ugicm import bitstream, images, windows
from ugicm.codec import Codec
from ugicm.entropy.coders import Encoder
from ugicm.errors import UgicmError
from ugicm.evaluation.metrics import psnr
from ugicm.images import SourceImage
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut, default_tile

START = 0.5  # quality of the first try
STEPS = 6
# By kind of target: growth over the range of qualities, as a first guess, and how near the search ends. For sizes these
# are of the logarithm.
_GROWTH = {"size": 2.8, "psnr": 10.0}
_TOLERANCE = {"size": 0.02, "psnr": 0.1}


class Target(NamedTuple):
    """At most so many bytes or bits per pixel of the whole file, or at least a PSNR in dB for the human preference."""

    kind: Literal["size", "bpp", "psnr"]
    value: float


class Reached(NamedTuple):
    """The bitstream found, its quality, and its PSNR if that was searched for."""

    data: bytes
    quality: float
    psnr: float | None


def compress_to(codec: Codec, image: SourceImage, target: Target) -> Reached:
    """Compress an image with the highest quality of at most a size, or the lowest of at least a PSNR.

    The search ends within 2 % or 0.1 dB, or after six tries.

    Raises:
        UgicmError: the target cannot be reached.
        ValueError: the model has one rate.
    """
    if not codec.has_quality:
        raise ValueError("this model has one rate: it cannot compress to a target")
    width, height = image.size
    latents = _Latents(codec, image)
    kind, goal = ("psnr", target.value) if target.kind == "psnr" else ("size", target.value)
    if target.kind == "bpp":
        goal *= width * height / 8

    def try_quality(quality: float) -> tuple[float, Reached]:
        if kind == "size":
            data = latents.encode(quality)
            return math.log(len(data) / goal), Reached(data, quality, None)
        found = psnr(image.visible(), latents.decoded(quality))
        return found - goal, Reached(b"", quality, found)

    best = _search(try_quality, _GROWTH[kind], _TOLERANCE[kind], above=kind == "psnr")
    if best is None and kind == "size":
        raise UgicmError(f"quality 0 takes {len(latents.encode(0.0)):,} bytes, more than {goal:,.0f}")
    if best is None:
        raise UgicmError(f"quality 1 does not reach {goal:g} dB")
    return best if best.data else best._replace(data=latents.encode(best.quality))


class _Latents:
    """The latents of an image, analyzed once. Only the gain and what follows it is computed for each quality."""

    @torch.inference_mode()
    def __init__(self, codec: Codec, image: SourceImage):
        self.codec, self.image, self.padded = codec, image, bitstream.padded_box(*image.size)
        self.tile = default_tile(self.padded)
        start = self._batched(START)
        levels = images.to_levels(image.visible(), Z_STRIDE)
        self.y = windows.analyze(codec.model, levels, start) / codec.model.gain(start)

    @torch.inference_mode()
    def encode(self, quality: float) -> bytes:
        """Return the bitstream of a quality."""
        return self.codec.entropy_encode(self.image, *self._scaled(quality), quality, self.tile)

    @torch.inference_mode()
    def decoded(self, quality: float) -> Image.Image:
        """Return the image for the human preference that the bitstream of a quality decodes to, without coding."""
        model = self.codec.model
        y, z = self._scaled(quality)
        y_hat = torch.empty_like(y)
        for box in cut(self.padded, self.tile):
            coder = Encoder(model.entropy_model, 1, bitstream.coded_extent(box, *self.image.size))
            y_tile, z_tile = y[..., *box.slices(Y_STRIDE)], z[..., *box.slices(Z_STRIDE)]
            y_hat[..., *box.slices(Y_STRIDE)] = model.entropy_model(coder, z_tile, y_tile)
        view = Box(0, 0, *self.image.size)
        return windows.synthesize(model, y_hat, [torch.zeros(1)], self._batched(quality), view)[0]

    def _scaled(self, quality: float) -> tuple[Tensor, Tensor]:
        y = self.y * self.codec.model.gain(self._batched(quality))
        return y, self.codec.model.hyper_analyze(y)

    def _batched(self, quality: float) -> Tensor:
        return torch.tensor([quality], device=self.codec.device, dtype=torch.float32)


def _search(
    try_quality: Callable[[float], tuple[float, Reached]], growth: float, tolerance: float, above: bool
) -> Reached | None:
    """Return the result nearest to an error of 0 on the side that is allowed, None if there is none.

    ``try_quality`` returns an error, which grows with the quality, and a result. ``growth`` is a guess of its slope.
    """
    low, high, before = None, None, None  # (quality, error): at either side of the target, and of the try before
    quality, best, last = START, None, 1.0 if above else 0.0
    for step in range(STEPS + 1):
        if step == STEPS:
            if best is not None:
                break
            quality = last
        quality = bitstream.quantize_quality(min(max(quality, 0.0), 1.0))
        error, result = try_quality(quality)
        if before and quality != before[0]:
            measured = (error - before[1]) / (quality - before[0])
            growth = min(max(measured, growth / 3), 3 * growth)
        before = quality, error
        low, high = ((quality, error), high) if error <= 0 else (low, (quality, error))
        if (error >= 0) == above or error == 0:
            best = result
            if abs(error) <= tolerance:
                break
        if low and low[0] == 1 or high and high[0] == 0:
            break
        aim = tolerance / 2 * (1 if above else -1)
        if low and high:
            share = (aim - low[1]) / (high[1] - low[1])
            quality = low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
        else:
            quality += (aim - error) / growth
    return best
