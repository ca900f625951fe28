"""Convolutions, GDN and residual blocks shared by the transforms and the contexts.

The residual blocks follow Cheng, Sun, Takeuchi, Katto (CVPR 2020), with the activations of MLIC++.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.entropy.lower_bound import LowerBound


class Pointwise(nn.Conv2d):
    """1x1 convolution with stride 1. [B, C, H, W] -> [B, O, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # With one thread and fewer than 16 images PyTorch calls MKL instead of oneDNN, which takes twice as long on
        # AMD processors. Therefore the positions are rearranged as 16 or more images of one row.
        batch, channels, height, width = x.shape
        one_thread = x.device.type == "cpu" and torch.get_num_threads() == 1 and not torch.compiler.is_compiling()
        if one_thread and batch < 16 and not torch.is_grad_enabled():
            positions = batch * height * width
            images = next((n for n in range(16, 32) if positions % n == 0), None)
            if images:
                rows = x.permute(0, 2, 3, 1).reshape(images, 1, -1, channels).permute(0, 3, 1, 2)
                y = super().forward(rows).permute(0, 2, 3, 1)
                return y.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return super().forward(x)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with zero padding. [B, in, H, W] -> [B, out, H / stride, W / stride]."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)


def depthwise3x3(channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution of each channel with zero padding. [B, C, H, W] -> [B, C, H, W]."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def subpel_conv3x3(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """Return a 3x3 convolution and a pixel shuffle (Shi et al., CVPR 2016).

    [B, in, H, W] -> [B, out, factor H, factor W].
    """
    return nn.Sequential(conv3x3(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


def gelu_stack(layer: Callable[[int, int], nn.Module], *widths: int) -> list[nn.Module]:
    """Return ``layer(widths[0], widths[1])``, ``layer(widths[1], widths[2])``, ... with GELU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [layer(width_in, width_out), nn.GELU()]
    return layers[:-1]


def full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """Run ``module`` in the precision of its weights, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.to(next(module.parameters()).dtype))


class NonNegative(nn.Module):
    """Reparametrize a parameter that must stay at or above ``minimum`` >= 0 in training.

    The raw parameter ``p`` stands for ``max(p, bound)^2 - pedestal``. The pedestal keeps the derivative away from 0.
    """

    def __init__(self, minimum: float = 0.0):
        super().__init__()
        pedestal = 2.0**-36
        self.register_buffer("pedestal", torch.tensor([pedestal]))
        self.lower_bound = LowerBound((minimum + pedestal) ** 0.5)

    def raw(self, value: Tensor) -> Tensor:
        """Return the raw parameter that stands for ``value`` >= 0."""
        return (value + self.pedestal).sqrt()

    def forward(self, raw: Tensor) -> Tensor:
        return self.lower_bound(raw).square() - self.pedestal


class GDN(nn.Module):
    """Generalized divisive normalization (Ballé, Laparra, Simoncelli, ICLR 2016). [B, C, H, W] -> [B, C, H, W].

    ``y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)``. With ``inverse``, the root is a factor instead. beta and gamma
    are non-negative. Names in the state dict are those of CompressAI.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta_reparam = NonNegative(minimum=1e-6)
        self.beta = nn.Parameter(self.beta_reparam.raw(torch.ones(channels)))
        self.gamma_reparam = NonNegative()
        self.gamma = nn.Parameter(self.gamma_reparam.raw(0.1 * torch.eye(channels)))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma_reparam(self.gamma)[:, :, None, None]
        norm = F.conv2d(x.square(), gamma, self.beta_reparam(self.beta))
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by GELU, and a skip connection (1x1 if the width changes).

    [B, in, H, W] -> [B, out, H, W].
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv1(x))
        return F.gelu(self.conv2(h)) + self.skip(x)


class ResidualDown(nn.Module):
    """Halve the resolution: 3x3 with stride 2, GELU, 3x3, GDN. The skip connection is 1x1 with stride 2.

    [B, in, H, W] with H and W even -> [B, out, H/2, W/2].
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride=2)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.gdn = GDN(out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv1(x))
        return self.gdn(self.conv2(h)) + self.skip(x)


class ResidualUp(nn.Module):
    """Double the resolution: 3x3 with pixel shuffle, GELU, 3x3, inverse GDN. The skip connection is 3x3 with shuffle.

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
