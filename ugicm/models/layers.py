"""Convolutions and residual blocks shared by the transforms and the contexts.

The residual blocks follow Cheng, Sun, Takeuchi, Katto (CVPR 2020) with the activations of MLIC++. GDN is
Ballé, Laparra, Simoncelli (ICLR 2016), as implemented by CompressAI.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from compressai.layers import GDN, conv1x1
from torch import Tensor, nn

from ugicm.models import winograd

__all__ = [
    "GDN", "Conv2d", "DepthwiseConv3x3", "ResidualBlock", "ResidualDown", "ResidualUp", "conv1x1", "conv3x3",
    "conv3x3_stack", "full_precision", "pointwise_stack", "subpel_conv3x3",
]  # fmt: skip


class Conv2d(nn.Conv2d):
    """A convolution with zero padding ``kernel_size // 2`` that is also quick in float64 on the CPU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self._fast_float64 = stride == 1 and kernel_size in (3, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self._fast_float64 and x.dtype == torch.float64 and x.device.type == "cpu":
            return winograd.conv2d(x, self.weight, self.bias)
        return super().forward(x)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> Conv2d:
    """3x3 convolution; the output is 1 / stride of the input's size."""
    return Conv2d(in_channels, out_channels, 3, stride)


def subpel_conv3x3(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """3x3 convolution and pixel shuffle (Shi et al., CVPR 2016); the output is ``factor`` times as large."""
    return nn.Sequential(conv3x3(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by GELU, and a skip (1x1 where the width changes).

    [B, in, H, W] -> [B, out, H, W].
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv1(x))
        return F.gelu(self.conv2(h)) + self.skip(x)


class ResidualDown(nn.Module):
    """Halve the resolution: 3x3 with stride 2, GELU, 3x3, GDN; the skip is 1x1 with stride 2.

    [B, in, H, W] (H and W even) -> [B, out, H/2, W/2].
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride=2)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.gdn = GDN(out_channels)
        self.skip = conv1x1(in_channels, out_channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv1(x))
        return self.gdn(self.conv2(h)) + self.skip(x)


class ResidualUp(nn.Module):
    """Double the resolution: 3x3 with pixel shuffle, GELU, 3x3, inverse GDN; the skip likewise up.

    [B, in, H, W] -> [B, out, 2H, 2W].
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = subpel_conv3x3(in_channels, out_channels, 2)
        self.conv = conv3x3(out_channels, out_channels)
        self.igdn = GDN(out_channels, inverse=True)
        self.skip = subpel_conv3x3(in_channels, out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.up(x))
        return self.igdn(self.conv(h)) + self.skip(x)


class DepthwiseConv3x3(nn.Conv2d):
    """One 3x3 filter a channel, zero padding, stride 1. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64 or x.device.type != "cpu":
            return super().forward(x)
        # PyTorch would run a float64 convolution a channel; nine shifted products are eight times as fast.
        height, width = x.shape[-2:]
        padded = F.pad(x, (1, 1, 1, 1))
        y = self.bias[:, None, None]
        for row in range(3):
            for column in range(3):
                shifted = padded[..., row : row + height, column : column + width]
                y = torch.addcmul(y, shifted, self.weight[:, :, row, column, None])
        return y


def full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """Run ``module`` in the precision of its weights, also within autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.to(next(module.parameters()).dtype))


def conv3x3_stack(*widths: int) -> list[nn.Module]:
    """3x3 convolutions ``widths[0] -> widths[1] -> ...`` with GELU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [conv3x3(width_in, width_out), nn.GELU()]
    return layers[:-1]


def pointwise_stack(*widths: int) -> list[nn.Module]:
    """1x1 convolutions ``widths[0] -> widths[1] -> ...`` with GELU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [conv1x1(width_in, width_out), nn.GELU()]
    return layers[:-1]
