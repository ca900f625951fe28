"""Residual blocks of the compact transforms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.models.bands import ALL_ROWS, by_bands, in_bands
from ugicm.models.layers import Pointwise

FOLD = 8  # side of the blocks of pixels that are folded into channels


def dct_basis() -> Tensor:
    """Return the two-dimensional DCT of three orthonormal color channels on blocks of FOLD x FOLD pixels.

    Orthonormal rows [3 * FOLD^2, 3 * FOLD^2], low frequencies first. Columns are in the order of ``pixel_unshuffle``.
    """
    index = torch.arange(FOLD, dtype=torch.float64)
    cosines = math.sqrt(2 / FOLD) * torch.cos(math.pi * (2 * index + 1) * index[:, None] / (2 * FOLD))
    cosines[0] /= math.sqrt(2)
    colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]], dtype=torch.float64)
    colors /= colors.norm(dim=1, keepdim=True)
    basis = torch.einsum("kc,ai,bj->abkcij", colors, cosines, cosines).reshape(FOLD**2, 3, 3 * FOLD**2)
    by_frequency = sorted(range(FOLD**2), key=lambda n: n // FOLD + n % FOLD)
    return basis[by_frequency].flatten(0, 1).float()


def dct_gain(count: int) -> Tensor:
    """Return the initial gains [count] of the rows of :func:`dct_basis`: larger for low frequencies."""
    return 1 / (0.15 + 0.5 * torch.arange(count) / (3 * FOLD**2))


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=not torch.is_grad_enabled())


def _add(update: Tensor, x: Tensor) -> Tensor:
    """Return x + update, in the memory of ``update`` unless that is of reduced precision."""
    return update.add_(x) if update.dtype == x.dtype else x + update


class CompactBlock(nn.Module):
    """Two residual steps: pointwise, depthwise, pointwise; then a pointwise feed-forward pair.

    x [B, C, H, W] -> [B, C, H, W], or only its ``rows``. With ``condition_width``, the features before the depthwise
    convolution are scaled and shifted per channel by a projection of the condition [B, D]. It starts at zero, so that
    an untrained condition has no effect.
    """

    def __init__(self, width: int, condition_width: int = 0):
        super().__init__()
        self.expand = Pointwise(width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project = Pointwise(width, width)
        self.widen = Pointwise(width, 2 * width)
        self.narrow = Pointwise(2 * width, width)
        self.modulation = None
        if condition_width:
            self.modulation = nn.Linear(condition_width, 2 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None, rows: slice = ALL_ROWS) -> Tensor:
        h = _leaky_relu(self.expand(x))
        if self.modulation is not None:
            scale, shift = self.modulation(condition)[:, :, None, None].to(h.dtype).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        x = _add(self.project(self.depthwise(h)[:, :, rows]), x[:, :, rows])
        return _add(self.narrow(_leaky_relu(self.widen(x))), x)


def run_blocks(x: Tensor, blocks: nn.ModuleList, condition: Tensor | None = None) -> Tensor:
    """Apply the blocks in order, [B, C, H, W] -> [B, C, H, W], by bands where :func:`by_bands` allows it.

    x may be overwritten then.
    """
    for block in blocks:

        def step(x: Tensor, rows: slice, block: CompactBlock = block) -> Tensor:
            return block(x, condition, rows)

        x = in_bands(step, x) if by_bands(x) else step(x, ALL_ROWS)
    return x
