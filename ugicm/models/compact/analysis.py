"""Analysis (g_a) and hyper-analysis (h_a) transforms of the compact model.

g_a has a deep branch and a linear one. The deep branch works on 8x8 pixels folded into channels: residual blocks at
1/8 resolution, a strided convolution, residual blocks at 1/16. The linear branch, present if ``detail_width`` is not
0, computes the last channels of y as linear coefficients of 16x16 pixels. They carry the detail that the deep branch
loses at high rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import CompactConfig
from ugicm.models.bands import assemble
from ugicm.models.compact.blocks import FOLD, CompactBlock, dct_basis, dct_gain, run_blocks
from ugicm.models.layers import Pointwise, full_precision
from ugicm.tiling import Y_STRIDE

SLOPE = 0.125  # of the leaky ReLUs of h_a


def fold(x: Tensor, size: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a pointwise layer to blocks of ``size`` x ``size`` pixels, centered at 0.

    [B, 3, H, W] in [0, 1] -> [B, C, H / size, W / size]. Raises RuntimeError if H or W is no multiple of ``size``.
    """

    def piece(rows: slice) -> Tensor:
        return layer(F.pixel_unshuffle(x[:, :, rows.start * size : rows.stop * size] - 0.5, size))

    height, width = (math.ceil(side / size) for side in x.shape[-2:])
    return assemble(piece, x, height, width)


class CompactAnalysis(nn.Module):
    """g_a: image [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16].

    Layers outside the blocks stay in float32 under autocast, as in the synthesis.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        self.stem = Pointwise(3 * FOLD**2, config.width_8)
        self.blocks_8 = nn.ModuleList(CompactBlock(config.width_8) for _ in range(config.depth_8))
        self.down = nn.Conv2d(config.width_8, config.width_16, 2, stride=2)
        self.blocks_16 = nn.ModuleList(CompactBlock(config.width_16) for _ in range(config.depth_16))
        self.head = Pointwise(config.width_16, config.M - config.detail_width)
        self.detail = Pointwise(3 * Y_STRIDE**2, config.detail_width, bias=False) if config.detail_width else None
        basis = dct_basis()[: config.width_8]
        with torch.no_grad():  # training starts at a lower loss than with random values
            self.stem.weight[: len(basis)] = (dct_gain(len(basis))[:, None] * basis)[..., None, None]
            self.stem.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        h = run_blocks(fold(x, FOLD, lambda pixels: full_precision(self.stem, pixels)), self.blocks_8)
        h = run_blocks(full_precision(self.down, h), self.blocks_16)
        y = full_precision(self.head, h)
        if self.detail is None:
            return y
        detail = fold(x, Y_STRIDE, lambda pixels: full_precision(self.detail, pixels))
        return torch.cat([y, detail], dim=1)


class CompactHyperAnalysis(nn.Module):
    """h_a: y [B, M, H/16, W/16] -> z [B, N, H/64, W/64], from the channels of the deep branch only."""

    def __init__(self, config: CompactConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(config.M - config.detail_width, config.N, 3, padding=1)
        self.conv2 = nn.Conv2d(config.N, config.N, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(config.N, config.N, 3, stride=2, padding=1)
        # z must exceed the quantization noise from the start, otherwise the rate term drives it to zero for good.
        with torch.no_grad():
            self.conv3.weight.mul_(8)

    def forward(self, y: Tensor) -> Tensor:
        y = y[:, : self.conv1.in_channels]
        h = F.leaky_relu(self.conv1(y), SLOPE)
        return self.conv3(F.leaky_relu(self.conv2(h), SLOPE))
