"""Images for machines are sharpened a little.

Classifiers prefer sharp images, and a codec with squared error in its loss makes soft ones, the softer the lower the
rate. What training leaves of that is made up for by unsharp masking, which needs no weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ugicm.models.bands import by_bands, in_bands

BAND = 2**16  # pixels of a band


def sharpen(x: Tensor, amount: Tensor) -> Tensor:
    """x + amount * (x - mean of the 3x3 pixels around); the border counts as repeated. [B, 3, H, W] -> same.

    ``amount``: [B, 1, 1, 1], or [B, 1, H, W] for every pixel. x may be overwritten outside training.
    """

    def unsharp(x: Tensor, rows: slice) -> Tensor:
        colors = x.shape[1]
        lines = x.permute(0, 2, 3, 1).flatten(2)  # [B, H, W * 3]: the memory of an image in channels_last
        blurred = _with_neighbors(_with_neighbors(lines, 1, 1)[:, rows], 2, colors) / 9
        sharp = torch.lerp(*(v.unflatten(2, (-1, colors)) for v in (blurred, lines[:, rows])), weight)
        return sharp.permute(0, 3, 1, 2)

    weight = 1 + amount.permute(0, 2, 3, 1)
    if by_bands(x) and amount.shape[2:] == (1, 1):
        return in_bands(unsharp, x, BAND)
    return unsharp(x, slice(None))


def _with_neighbors(x: Tensor, dim: int, step: int) -> Tensor:
    """x plus what lies ``step`` before and after along ``dim``; at the ends plus itself."""
    rest = x.shape[dim] - step
    total = x.clone()
    for mine, other in ((0, step), (step, 0)):
        total.narrow(dim, mine, rest).add_(x.narrow(dim, other, rest))
    for end in (0, rest):
        total.narrow(dim, end, step).add_(x.narrow(dim, end, step))
    return total
