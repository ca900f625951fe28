"""Convolution with fewer multiplications, for float64 on the CPU.

PyTorch has no fast float64 convolution on the CPU. Here 6x6 tiles of the input are transformed, multiplied
channel by channel with transformed filters, and transformed back: a 3x3 filter then takes 2.25 products
per output instead of 9, a 5x5 filter 9 instead of 25 (Winograd, "Arithmetic Complexity of Computations", 1980;
Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). The transforms amplify rounding errors by
about 100, which leaves 13 good digits.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 6
_BLOCK = 1 << 20  # values of transformed filters held at a time: few enough to stay in the cache


@functools.cache
def _matrices(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms for filters of ``taps`` in one dimension: input [6, 6], filter [6, taps], output [7 - taps, 6].

    Toom-Cook: polynomials are multiplied by their values at 0, 1, -1, 2, -2 and infinity; a filter is the
    transpose of that product.
    """
    points = torch.tensor([0.0, 1.0, -1.0, 2.0, -2.0], dtype=torch.float64)

    def evaluation(coefficients: int) -> Tensor:
        values = points[:, None] ** torch.arange(coefficients)
        at_infinity = torch.zeros(1, coefficients, dtype=torch.float64)
        at_infinity[0, -1] = 1
        return torch.cat([values, at_infinity])

    differences = points[:, None] - points + torch.eye(len(points), dtype=torch.float64)
    scale = torch.cat([differences.prod(dim=1), torch.ones(1, dtype=torch.float64)])[:, None]
    signal = torch.round(torch.linalg.inv(evaluation(TILE)).T * scale)  # integers
    return signal, evaluation(taps) / scale, evaluation(TILE + 1 - taps).T.contiguous()


@functools.cache
def _matrices_2d(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same for flattened two-dimensional tiles."""
    return tuple(torch.kron(m, m) for m in _matrices(taps))


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.conv2d`` with stride 1 and zero padding that keeps the size. Any dtype; meant for float64.

    x [B, C, H, W], weight [O, C, k, k] with k = 3 or 5 -> [B, O, H, W].
    """
    batch, channels, height, width = x.shape
    outputs, _, taps, _ = weight.shape
    signal, filters, inverse = (m.to(x) for m in _matrices_2d(taps))
    side = TILE + 1 - taps  # of the output of a tile
    rows, columns = -(-height // side), -(-width // side)
    border = taps // 2
    x = F.pad(x, (border, border + columns * side - width, border, border + rows * side - height))
    tiles = x.unfold(2, TILE, side).unfold(3, TILE, side)  # [B, C, rows, columns, 6, 6]
    tiles = tiles.permute(4, 5, 1, 0, 2, 3).reshape(TILE**2, -1)
    tiles = (signal @ tiles).view(TILE**2, channels, -1)
    products = x.new_empty(TILE**2, outputs, tiles.shape[-1])
    step = max(1, _BLOCK // (TILE**2 * channels))
    for start in range(0, outputs, step):
        part = weight[start : start + step]
        transformed = (filters @ part.reshape(-1, taps**2).T).view(TILE**2, len(part), channels)
        products[:, start : start + step] = torch.bmm(transformed, tiles)
    y = (inverse @ products.flatten(1)).view(side, side, outputs, batch, rows, columns)
    y = y.permute(3, 2, 4, 0, 5, 1).reshape(batch, outputs, rows * side, columns * side)[..., :height, :width]
    return y if bias is None else y + bias[:, None, None]
