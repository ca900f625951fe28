"""Output sharpening: unsharp masking of the images for machine preference.

Classifiers prefer sharp images, but a codec trained with squared error produces soft ones, in particular at low rates.
Unsharp masking compensates for what training leaves of this, without weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ugicm.models.bands import ALL_ROWS, by_bands, in_bands

BAND = 2**16  # pixels per band


def sharpen(x: Tensor, amount: Tensor) -> Tensor:
    """Return x + amount * (x - blurred x), blurred by the mean of 3x3 pixels with the border replicated.

    x is [B, 3, H, W]. ``amount`` is [B, 1, 1, 1], or [B, 1, H, W] with a value for every pixel. Outside training, x may
    be overwritten.
    """

    def unsharp(x: Tensor, rows: slice) -> Tensor:
        colors = x.shape[1]
        lines = x.permute(0, 2, 3, 1).flatten(2)  # [B, H, W * 3]: the memory of a channels_last image
        blurred = _sum_of_three(_sum_of_three(lines, 1, 1)[:, rows], 2, colors) / 9
        sharp = torch.lerp(*(v.unflatten(2, (-1, colors)) for v in (blurred, lines[:, rows])), weight)
        return sharp.permute(0, 3, 1, 2)

    weight = 1 + amount.permute(0, 2, 3, 1)
    if by_bands(x) and amount.shape[2:] == (1, 1):
        return in_bands(unsharp, x, BAND)
    return unsharp(x, ALL_ROWS)


def _sum_of_three(x: Tensor, dim: int, step: int) -> Tensor:
    """Return x plus its neighbors at distance ``step`` along ``dim``. At the ends, x itself is the neighbor."""
    remaining = x.shape[dim] - step
    total = x.clone()
    for target, source in ((0, step), (step, 0)):
        total.narrow(dim, target, remaining).add_(x.narrow(dim, source, remaining))
    for end in (0, remaining):
        total.narrow(dim, end, step).add_(x.narrow(dim, end, step))
    return total
