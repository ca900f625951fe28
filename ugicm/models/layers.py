"""Convolutions and residual blocks shared by the transforms and the contexts.

The residual blocks follow Cheng, Sun, Takeuchi, Katto (CVPR 2020) with the activations of MLIC++. GDN is
Ballé, Laparra, Simoncelli (ICLR 2016), as implemented by CompressAI.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.entropy.factorized import GDN, conv1x1
from ugicm.models import float64_convolution, winograd

__all__ = [
    "GDN", "Conv2d", "DepthwiseConv3x3", "Pointwise", "ResidualBlock", "ResidualDown", "ResidualUp", "conv3x3",
    "conv3x3_stack", "full_precision", "pointwise_stack", "subpel_conv3x3",
]  # fmt: skip


class Conv2d(nn.Conv2d):
    """A convolution with zero padding ``kernel_size // 2``, on the CPU with Winograd's algorithm where that pays."""

    # Where it pays in float32: positions that share the transformed filters, and products for each tap.
    WORTHWHILE_POSITIONS = 512
    WORTHWHILE = 2**26

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def by_winograd(self, x: Tensor) -> bool:
        """Whether :func:`ugicm.models.winograd.convolve` is the quickest way to convolve ``x``, and the layers after
        this one can work by bands, too: in float32 on the CPU, with nothing to be differentiated."""
        positions = len(x) * x.shape[2] * x.shape[3]
        return (
            self._plain(x, torch.float32)
            and not torch.is_autocast_enabled("cpu")
            and self.kernel_size == (3, 3)
            and positions >= self.WORTHWHILE_POSITIONS
            and positions * self.in_channels * self.out_channels >= self.WORTHWHILE
        )

    def _plain(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether this is a convolution in ``dtype`` on the CPU, of stride 1, where gradients are switched off."""
        on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype == dtype
        return on_cpu and self.stride == (1, 1) and not torch.is_grad_enabled()

    def convolve(self, x: Tensor, out: Tensor | None = None) -> Iterator[winograd.Band]:
        """The results for ``x``, band by band (:func:`ugicm.models.winograd.convolve`)."""
        return winograd.convolve(x, [(self.weight, self.bias)], out)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_winograd(x):
            return winograd.conv2d(x, self.weight, self.bias)
        if self._plain(x, torch.float64) and self.kernel_size in ((3, 3), (5, 5)):
            return float64_convolution.conv2d(x, self.weight, self.bias)
        return super().forward(x)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with stride 1. [B, C, H, W] -> [B, O, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As ``F.conv2d`` for kernels of 1x1.

    With one thread and fewer than 16 images PyTorch does not ask oneDNN but MKL, which is half as fast on AMD's
    processors. So it is given 16 images or a few more, of one row, which are the same positions.
    """
    batch, channels, height, width = x.shape
    if x.device.type == "cpu" and batch < 16 and torch.get_num_threads() == 1 and not torch.is_grad_enabled():
        positions = batch * height * width
        images = next((n for n in range(16, 32) if positions % n == 0), None)
        if images:
            rows = x.permute(0, 2, 3, 1).reshape(images, 1, -1, channels).permute(0, 3, 1, 2)
            y = F.conv2d(rows, weight, bias).permute(0, 2, 3, 1)
            return y.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def gelu_(x: Tensor) -> Tensor:
    """GELU in place; not differentiable."""
    return torch.ops.aten.gelu_(x)


class BandGDN:
    """The same as a CompressAI ``GDN``, for bands [rows, W, C], in place; not differentiable."""

    POSITIONS = 3072  # at a time, about: what lies in between stays in the cache

    def __init__(self, gdn: GDN):
        self.inverse = gdn.inverse
        self.beta, self.gamma = gdn.beta_reparam(gdn.beta), gdn.gamma_reparam(gdn.gamma)[..., None, None]

    def __call__(self, band: Tensor) -> Tensor:
        for rows in band.split(max(1, self.POSITIONS // band.shape[1])):
            norm = pointwise(winograd.as_image(rows.square()), self.gamma, self.beta)[0].permute(1, 2, 0)
            rows.mul_(norm.sqrt_() if self.inverse else norm.rsqrt_())
        return band


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> Conv2d:
    """3x3 convolution; the output is 1 / stride of the input's size."""
    return Conv2d(in_channels, out_channels, 3, stride)


def subpel_conv3x3(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """3x3 convolution and pixel shuffle (Shi et al., CVPR 2016); the output is ``factor`` times as large."""
    return nn.Sequential(conv3x3(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by GELU, and a skip (1x1 where the width changes).

    [B, in, H, W] -> [B, out, H, W]. With ``reuse`` the result may take the memory of the input; ``room``
    [B, out, H, W] is memory free for use.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor, reuse: bool = False, room: Tensor | None = None) -> Tensor:
        if self.conv1.by_winograd(x):
            return residual_by_bands(self, x, reuse, room)
        h = F.gelu(self.conv1(x))
        return F.gelu(self.conv2(h)) + self.skip(x)


def residual_by_bands(
    block: nn.Module,
    x: Tensor,
    reuse: bool,
    room: Tensor | None = None,
    shifts: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A residual block (``conv1``, ``conv2``, ``skip``) with each activation and sum done while its input is in the
    cache. ``shifts``, each [B, O], are added after the activations; ``reuse`` and ``room`` as in
    :class:`ResidualBlock`."""
    h = winograd.empty_like(x, block.conv1.out_channels) if room is None else room
    for band in block.conv1.convolve(x, out=h):
        gelu_(band.values)
        if shifts is not None:
            band.values += shifts[0][band.image]
    y = block.skip(x)
    if y is x and not reuse:
        y = x.clone()
    for band in block.conv2.convolve(h):
        gelu_(band.values)
        if shifts is not None:
            band.values += shifts[1][band.image]
        band.place(y).add_(band.values)
    return y


class ResidualDown(nn.Module):
    """Halve the resolution: 3x3 with stride 2, GELU, 3x3, GDN; the skip is 1x1 with stride 2.

    [B, in, H, W] (H and W even) -> [B, out, H/2, W/2] and, where bands were used, as much memory that is free now.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride=2)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.gdn = GDN(out_channels)
        self.skip = conv1x1(in_channels, out_channels, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.conv1(x)
        if not self.conv2.by_winograd(h):
            return self.gdn(self.conv2(F.gelu(h))) + self.skip(x), None
        gelu_(h)
        y, gdn = self.skip(x), BandGDN(self.gdn)
        for band in self.conv2.convolve(h):
            band.place(y).add_(gdn(band.values))
        return y, h


class ResidualUp(nn.Module):
    """Double the resolution: 3x3 with pixel shuffle, GELU, 3x3, inverse GDN; the skip likewise up.

    [B, in, H, W] -> [B, out, 2H, 2W] and, where bands were used, as much memory that is free now.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = subpel_conv3x3(in_channels, out_channels, 2)
        self.conv = conv3x3(out_channels, out_channels)
        self.igdn = GDN(out_channels, inverse=True)
        self.skip = subpel_conv3x3(in_channels, out_channels, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.up[0].by_winograd(x):
            h = F.gelu(self.up(x))
            return self.igdn(self.conv(h)) + self.skip(x), None
        # A convolution followed by a pixel shuffle is four convolutions, one for every place in the 2x2 squares.
        h, y = (winograd.empty_like(x, self.conv.in_channels, scale=2) for _ in range(2))
        kernels = [(conv.weight[p::4], conv.bias[p::4]) for conv in (self.up[0], self.skip[0]) for p in range(4)]
        for band in winograd.convolve(x, kernels):
            skip, place = divmod(band.kernel, 4)
            if not skip:
                gelu_(band.values)
            band.place((y if skip else h)[..., place // 2 :: 2, place % 2 :: 2]).copy_(band.values)
        gdn = BandGDN(self.igdn)
        for band in self.conv.convolve(h):
            band.place(y).add_(gdn(band.values))
        return y, h


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
        layers += [Pointwise(width_in, width_out), nn.GELU()]
    return layers[:-1]
