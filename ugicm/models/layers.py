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

from ugicm.compressai_parts import GDN, conv1x1
from ugicm.models import winograd
from ugicm.models.products import by_onednn, onednn_linear

__all__ = [
    "GDN", "Conv2d", "DepthwiseConv3x3", "ResidualBlock", "ResidualDown", "ResidualUp", "conv1x1", "conv3x3",
    "conv3x3_stack", "full_precision", "pointwise_stack", "subpel_conv3x3",
]  # fmt: skip


class Conv2d(nn.Conv2d):
    """A convolution with zero padding ``kernel_size // 2``, on the CPU with Winograd's algorithm where that pays."""

    # Where it pays in float32: input times output channels, and tiles to share the transform of the filters.
    WORTHWHILE = 96 * 96
    WORTHWHILE_TILES = 64

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    @property
    def suits_blocks(self) -> bool:
        """Whether blocks are quicker in float32, on maps that are not small."""
        wide = self.in_channels * self.out_channels >= self.WORTHWHILE
        return wide and self.kernel_size == (3, 3) and self.stride == (1, 1)

    def by_blocks(self, x: Tensor) -> bool:
        """Whether :func:`ugicm.models.winograd.blocks` is the way to convolve ``x``: nothing is to be differentiated,
        the precision is not reduced, and it is quicker."""
        if x.device.type != "cpu" or self.stride != (1, 1) or x.dtype != self.weight.dtype:
            return False
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, self.weight, self.bias)):
            return False
        if x.dtype == torch.float64:
            return self.kernel_size in ((3, 3), (5, 5))
        return (
            x.dtype == torch.float32
            and self.suits_blocks
            and winograd.count_tiles(x, 3) >= self.WORTHWHILE_TILES
            and not torch.is_autocast_enabled("cpu")
        )

    def starts_blocks(self, x: Tensor) -> bool:
        """Whether the layers after this convolution, too, can work by blocks: they are not to be differentiated."""
        return not torch.is_grad_enabled() and self.by_blocks(x)

    def blocks(self, x: Tensor) -> Iterator[winograd.Block]:
        """The results for ``x`` as blocks that are still in the cache."""
        return winograd.blocks(x, [(self.weight, self.bias)])

    def forward(self, x: Tensor) -> Tensor:
        return winograd.conv2d(x, self.weight, self.bias) if self.by_blocks(x) else super().forward(x)


def store_for_blocks(network: nn.Module) -> None:
    """Put the filters that blocks will use in float32 into the memory order that is quickest for them."""
    for module in network.modules():
        if isinstance(module, Conv2d) and module.suits_blocks:
            module.weight.data = winograd.taps_first(module.weight.data)


def gelu_(x: Tensor) -> Tensor:
    """GELU in place; not differentiable."""
    return torch.ops.aten.gelu_(x)


class RowsGDN:
    """The same as a CompressAI ``GDN``, for rows of channels [n, C], in place; not differentiable."""

    def __init__(self, gdn: GDN):
        self.inverse = gdn.inverse
        self.beta, self.gamma = gdn.beta_reparam(gdn.beta), gdn.gamma_reparam(gdn.gamma).T

    def __call__(self, rows: Tensor) -> Tensor:
        squares = rows.square()
        if by_onednn(rows):
            norm = onednn_linear(squares, self.gamma.T, self.beta)
        else:
            norm = torch.addmm(self.beta, squares, self.gamma)
        return rows.mul_(norm.sqrt_() if self.inverse else norm.rsqrt_())


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> Conv2d:
    """3x3 convolution; the output is 1 / stride of the input's size."""
    return Conv2d(in_channels, out_channels, 3, stride)


def subpel_conv3x3(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """3x3 convolution and pixel shuffle (Shi et al., CVPR 2016); the output is ``factor`` times as large."""
    return nn.Sequential(conv3x3(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by GELU, and a skip (1x1 where the width changes).

    [B, in, H, W] -> [B, out, H, W]. With ``reuse`` the result may take the memory of the input.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor, reuse: bool = False) -> Tensor:
        if self.conv1.starts_blocks(x):
            return residual_by_blocks(self, x, reuse)
        h = F.gelu(self.conv1(x))
        return F.gelu(self.conv2(h)) + self.skip(x)


def residual_by_blocks(
    block: nn.Module, x: Tensor, reuse: bool, shifts: tuple[Tensor, Tensor] | None = None, room: Tensor | None = None
) -> Tensor:
    """A residual block (``conv1``, ``conv2``, ``skip``) with each activation and sum done while its input is in the
    cache. ``shifts``, each [B, O], are added after the activations; ``room`` [B, O, H, W] may be overwritten."""
    h = winograd.empty_like(x, block.conv1.out_channels) if room is None else room
    for part in block.conv1.blocks(x):
        gelu_(part.values)
        if shifts is not None:
            part.values += shifts[0][part.picture]
        part.store(h)
    y = block.skip(x)
    if y is x and not reuse:
        y = x.clone()
    for part in block.conv2.blocks(h):
        gelu_(part.values)
        if shifts is not None:
            part.values += shifts[1][part.picture]
        part.add_to(y)
    return y


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
        if self.conv2.starts_blocks(h):
            y, gdn = self.skip(x), RowsGDN(self.gdn)
            for part in self.conv2.blocks(h):
                gdn(part.values)
                part.add_to(y)
            return y
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
        if self.up[0].starts_blocks(x):
            return self.with_room(x)[0]
        h = F.gelu(self.up(x))
        return self.igdn(self.conv(h)) + self.skip(x)

    def with_room(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, by blocks, and memory of the same shape that is free for further use.

        A convolution followed by a pixel shuffle is four convolutions, one for every place in the 2x2 squares.
        """
        width = self.conv.in_channels
        h, y = (winograd.empty_like(x, width, scale=2) for _ in range(2))
        kernels = [(conv.weight[p::4], conv.bias[p::4]) for conv in (self.up[0], self.skip[0]) for p in range(4)]
        for part in winograd.blocks(x, kernels):
            skip, place = divmod(part.kernel, 4)
            if not skip:
                gelu_(part.values)
            part.store((y if skip else h)[..., place // 2 :: 2, place % 2 :: 2])
        gdn = RowsGDN(self.igdn)
        for part in self.conv.blocks(h):
            gdn(part.values)
            part.add_to(y)
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
        layers += [conv1x1(width_in, width_out), nn.GELU()]
    return layers[:-1]
