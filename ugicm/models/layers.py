"""Convolutions and residual blocks shared by the transforms and the contexts.

The residual blocks follow Cheng, Sun, Takeuchi, Katto (CVPR 2020) with the activations of MLIC++. GDN is Ballé,
Laparra, Simoncelli (ICLR 2016), as implemented by CompressAI.
"""

from __future__ import annotations

import torch.nn.functional as F
from compressai.layers import GDN, conv1x1, conv3x3, subpel_conv3x3
from torch import Tensor, nn

__all__ = [
    "GDN", "DepthwiseConv3x3", "ResidualBlock", "ResidualDown", "ResidualUp", "conv1x1", "conv3x3", "pointwise_mlp",
    "subpel_conv3x3",
]  # fmt: skip


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
    """Double the resolution: 3x3 with pixel shuffle, GELU, 3x3, inverse GDN; the skip is 3x3 with pixel shuffle.

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


def pointwise_mlp(*widths: int) -> nn.Sequential:
    """1x1 convolutions ``widths[0] -> widths[1] -> ...`` with GELU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in zip(widths, widths[1:]):
        layers += [conv1x1(width_in, width_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
