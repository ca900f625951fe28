"""Convolution in float64, for which PyTorch has no fast one: on the CPU, outside training.

6x6 tiles of the input are transformed, multiplied channel by channel with transformed filters, and transformed
back: a 3x3 filter then takes 2.25 products per output instead of 9, a 5x5 filter 9 instead of 25 (Winograd,
"Arithmetic Complexity of Computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016), all of them matrix products. The transforms amplify rounding errors about five times. For float32 see
:mod:`ugicm.models.winograd`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ugicm.models.workspace import take

TILE = 6
# Polynomials are multiplied by their values at these points and at infinity. Among small fractions these give the
# least rounding error for 3 taps in both directions: half as much as the usual 0, 1, -1, 2, -2 (compare Barabasz et
# al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020).
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_TILES = 96  # in a block, at least
_VALUES = 1 << 20  # of transformed input in a block, at most where there are more tiles than that
_FILTER_VALUES = 1 << 24  # of transformed filters made at a time: narrow parts of them multiply slowly


@functools.cache
def _matrices(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms for filters of ``taps``: input [6, 6] and output [7 - taps, 6] in one dimension, filter
    [36, taps^2] in both, columns before rows.

    Toom-Cook: a filter is the transpose of the product of polynomials.
    """
    with torch.device("cpu"):  # they are kept: not on a default device that somebody has set for a while
        points = torch.tensor(POINTS, dtype=torch.float64)

        def evaluation(coefficients: int) -> Tensor:
            values = points[:, None] ** torch.arange(coefficients)
            at_infinity = torch.zeros(1, coefficients, dtype=torch.float64)
            at_infinity[0, -1] = 1
            return torch.cat([values, at_infinity])

        differences = points[:, None] - points + torch.eye(len(points), dtype=torch.float64)
        scale = torch.cat([differences.prod(dim=1), torch.ones(1, dtype=torch.float64)])[:, None]
        signal = torch.round(torch.linalg.inv(evaluation(TILE)).T * scale * 2**10) / 2**10  # they are exact in binary
        filters = evaluation(taps) / scale
        both = torch.einsum("ia,jb->jiab", filters, filters).reshape(TILE**2, taps**2)
        return signal, both, evaluation(TILE + 1 - taps).T.contiguous()


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.conv2d`` with stride 1 and zero padding that keeps the size, channels last in memory. Not differentiable.

    x [B, C, H, W], weight [O, C, k, k] with k = 3 or 5 -> [B, O, H, W].
    """
    batch, channels, height, width = x.shape
    outputs, _, taps, _ = weight.shape
    step = -(-outputs // -(-outputs * TILE**2 * channels // _FILTER_VALUES))  # parts of equal width
    y = x.new_empty(batch, height, width, outputs)
    for first in range(0, outputs, step):
        part = slice(first, first + step)
        _convolve(x, weight[part], y[..., part])
    y = y.permute(0, 3, 1, 2)
    return y if bias is None else y.add_(bias[:, None, None])


def _convolve(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Write the convolution of x [B, C, H, W] to ``out`` [B, H, W, O], by blocks of tiles that stay in the cache."""
    batch, channels, height, width = x.shape
    outputs, _, taps, _ = weight.shape
    signal, filters, inverse = _matrices(taps)
    side, border = TILE + 1 - taps, taps // 2
    all_rows, all_columns = -(-height // side), -(-width // side)
    tiles = max(_TILES, _VALUES // (TILE**2 * channels))
    step_right = min(all_columns, tiles)
    step_down = min(all_rows, max(1, tiles // step_right))
    transformed_filters = take("filters", (TILE**2, channels, outputs), x.dtype)
    torch.mm(filters, weight.permute(2, 3, 1, 0).reshape(taps**2, -1), out=transformed_filters.flatten(1))
    for image in range(batch):
        source = x[image].permute(1, 2, 0)
        for row in range(0, all_rows, step_down):
            for column in range(0, all_columns, step_right):
                rows, columns = min(step_down, all_rows - row), min(step_right, all_columns - column)
                top, left = row * side, column * side
                strip = _cut(source, top - border, left - border, rows * side + taps - 1, columns * side + taps - 1)
                transformed = _transform_tiles(strip, signal, side, rows, columns)
                shape = TILE, TILE, rows * columns, outputs
                products = take("products", shape, x.dtype)
                torch.bmm(transformed, transformed_filters, out=products.flatten(0, 1))
                half = take("half", (side, *shape[1:]), x.dtype)
                torch.mm(inverse, products.view(TILE, -1), out=half.view(side, -1))
                values = take("values", (side, side, *shape[2:]), x.dtype)
                torch.bmm(inverse.expand(side, -1, -1), half.flatten(2), out=values.flatten(2))
                block = values.view(side, side, rows, columns, outputs).permute(2, 1, 3, 0, 4)
                place = out[image, top : top + rows * side, left : left + columns * side]
                place.copy_(block.reshape(rows * side, columns * side, outputs)[: place.shape[0], : place.shape[1]])


def _cut(source: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """The rectangle of ``source`` [H, W, C] from (top, left), which may lie outside, where the result is zero."""
    bottom, right = min(top + height, source.shape[0]), min(left + width, source.shape[1])
    inside = source[max(top, 0) : bottom, max(left, 0) : right]
    strip = take("strip", (height, width, source.shape[2]), source.dtype)
    first, last = max(-top, 0), bottom - top
    strip[:first] = 0
    strip[last:] = 0
    strip[first:last, : max(-left, 0)] = 0
    strip[first:last, right - left :] = 0
    strip[first:last, max(-left, 0) : right - left] = inside
    return strip


def _transform_tiles(strip: Tensor, signal: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """[rows * side + k - 1, columns * side + k - 1, C] -> transformed tiles [36, rows * columns, C]."""
    _, width, channels = strip.shape
    line = width * channels
    overlapping = strip.as_strided((rows, TILE, line), (side * line, line, 1))
    down = take("down", (rows, TILE, line), strip.dtype)
    torch.bmm(signal.expand(rows, -1, -1), overlapping, out=down)
    shape = TILE, TILE, rows, columns, channels  # columns of a tile before its rows
    across = take("across", shape, strip.dtype)
    across.copy_(down.as_strided(shape, (channels, line, TILE * line, side * channels, 1)))
    transformed = take("transformed", shape, strip.dtype)
    torch.mm(signal, across.view(TILE, -1), out=transformed.view(TILE, -1))
    return transformed.view(TILE**2, rows * columns, channels)
