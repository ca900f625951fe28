"""Convolution with fewer multiplications, on the CPU, outside training.

6x6 tiles of the input are transformed, multiplied channel by channel with transformed filters, and transformed
back: a 3x3 filter then takes 2.25 products per output instead of 9, a 5x5 filter 9 instead of 25 (Winograd,
"Arithmetic Complexity of Computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016). In float32 that is about twice as fast as the direct convolution for wide layers; float64 has no fast
convolution in PyTorch at all. The transforms amplify rounding errors about five times.

Everything goes by blocks of tiles that stay in the cache, channels last, and :func:`blocks` hands each out as soon
as it is done, so that what follows a convolution (an activation, a sum) need not go through memory again.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ugicm.models.products import by_onednn, onednn_linear

TILE = 6
# Polynomials are multiplied by their values at these points and at infinity. Among small fractions these give the
# least rounding error for 3 taps: half as much as the usual 0, 1, -1, 2, -2 (compare Barabasz et al., "Error Analysis
# and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020).
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_TILES = 96  # in a block, at least
# Of transformed input in a block, at most where there are more tiles than that; for oneDNN, whose calls cost more.
_VALUES, _VALUES_ONEDNN = 1 << 20, 1 << 21
_FILTER_VALUES = 1 << 24  # of transformed filters made at a time: narrow parts of them multiply slowly

Kernel = tuple[Tensor, Tensor | None]  # weight [O, C, k, k] and bias [O]


@functools.cache
def _matrices(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms for filters of ``taps`` in one dimension: input [6, 6], filter [6, taps], output [7 - taps, 6].

    Toom-Cook: a filter is the transpose of the product of polynomials.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)

    def evaluation(coefficients: int) -> Tensor:
        values = points[:, None] ** torch.arange(coefficients)
        at_infinity = torch.zeros(1, coefficients, dtype=torch.float64)
        at_infinity[0, -1] = 1
        return torch.cat([values, at_infinity])

    differences = points[:, None] - points + torch.eye(len(points), dtype=torch.float64)
    scale = torch.cat([differences.prod(dim=1), torch.ones(1, dtype=torch.float64)])[:, None]
    signal = torch.round(torch.linalg.inv(evaluation(TILE)).T * scale * 2**10) / 2**10  # they are exact in binary
    return signal, evaluation(taps) / scale, evaluation(TILE + 1 - taps).T.contiguous()


@functools.cache
def _transforms(taps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_matrices` in ``dtype``, the filters' for both dimensions: [36, taps^2], columns before rows."""
    with torch.device("cpu"):  # they are kept: not on a default device that somebody has set for a while
        signal, filters, inverse = _matrices(taps)
    both = torch.einsum("ia,jb->jiab", filters, filters).reshape(TILE**2, taps**2)
    return signal.to(dtype), both.to(dtype), inverse.to(dtype)


class _Workspace(threading.local):
    """Memory for intermediate results, kept from call to call: fresh pages would cost more than the arithmetic."""

    def __init__(self):
        self.buffers: dict[object, Tensor] = {}

    def take(self, name: object, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised, valid until the same name is taken again."""
        size = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # usable inside and outside of inference mode
                buffer = self.buffers[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return buffer[:size].view(shape)


_workspace = _Workspace()


def taps_first(weight: Tensor) -> Tensor:
    """The same filters [O, C, k, k] in the memory order in which :func:`transform_filters` need not copy them."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def transform_filters(weight: Tensor, place: int = 0) -> Tensor:
    """weight [O, C, k, k], best :func:`taps_first` -> [36, C, O], valid until the same ``place`` is used again."""
    outputs, channels, taps, _ = weight.shape
    _, filters, _ = _transforms(taps, weight.dtype)
    out = _workspace.take(("filters", place), (TILE**2, channels, outputs), weight.dtype)
    torch.mm(filters, weight.permute(2, 3, 1, 0).reshape(taps**2, -1), out=out.flatten(1))
    return out


@dataclass
class Block:
    """A convolution's outputs on a rectangle of tiles of one picture.

    ``values`` [n, O] has a row for every position (in no obvious order, some outside the picture) and may be changed
    in place or replaced, row by row, before it is stored.
    """

    values: Tensor
    picture: int  # index in the batch
    kernel: int  # index among the kernels
    top: int
    left: int
    tiles: tuple[int, int, int]  # outputs of a tile along a side, tiles downwards, tiles to the right

    def _with_place(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """This block's values and its place in ``out`` [B, O, H, W], in a common shape."""
        side, rows, columns = self.tiles
        place = out[self.picture].permute(1, 2, 0)
        place = place[self.top : self.top + rows * side, self.left : self.left + columns * side]
        values = self.values.view(side, side, rows, columns, -1).permute(2, 1, 3, 0, 4)
        if place.shape[:2] == (rows * side, columns * side):
            return values, place.unflatten(1, (columns, side)).unflatten(0, (rows, side))
        return values.reshape(rows * side, columns * side, -1)[: place.shape[0], : place.shape[1]], place

    def store(self, out: Tensor) -> None:
        """Write the values to their place in ``out`` [B, O, H, W]."""
        values, place = self._with_place(out)
        place.copy_(values)

    def add_to(self, out: Tensor) -> None:
        """Add the values to what is at their place in ``out`` [B, O, H, W]."""
        values, place = self._with_place(out)
        place.add_(values)


def empty_like(x: Tensor, channels: int, scale: int = 1) -> Tensor:
    """Uninitialised [B, channels, scale H, scale W] for x [B, C, H, W], channels last in memory."""
    batch, _, height, width = x.shape
    return x.new_empty(batch, height * scale, width * scale, channels).permute(0, 3, 1, 2)


def count_tiles(x: Tensor, taps: int) -> int:
    """How many tiles blocks of x [B, C, H, W] have: the products that every transformed filter takes part in."""
    side = TILE + 1 - taps
    return x.shape[0] * -(-x.shape[2] // side) * -(-x.shape[3] // side)


def blocks(x: Tensor, kernels: Sequence[Kernel]) -> Iterator[Block]:
    """Convolve x [B, C, H, W] (best channels last) with every kernel, block by block: stride 1, zero padding k // 2.

    All kernels have the same size k, 3 or 5. The values of a block are lost when the next one is asked for. Not
    differentiable.
    """
    batch, channels, height, width = x.shape
    taps = kernels[0][0].shape[-1]
    signal, _, inverse = _transforms(taps, x.dtype)
    side, border = TILE + 1 - taps, taps // 2
    all_rows, all_columns = -(-height // side), -(-width // side)
    tiles = max(_TILES, (_VALUES_ONEDNN if by_onednn(x) else _VALUES) // (TILE**2 * channels))
    step_right = min(all_columns, tiles)
    step_down = min(all_rows, max(1, tiles // step_right))
    once = batch == 1 and step_right == all_columns and step_down == all_rows
    filters = [None if once else transform_filters(weight, place) for place, (weight, _) in enumerate(kernels)]
    take = functools.partial(_workspace.take, dtype=x.dtype)

    for picture in range(batch):
        source = x[picture].permute(1, 2, 0)
        for row in range(0, all_rows, step_down):
            for column in range(0, all_columns, step_right):
                rows, columns = min(step_down, all_rows - row), min(step_right, all_columns - column)
                top, left = row * side, column * side
                strip = _cut(source, top - border, left - border, rows * side + taps - 1, columns * side + taps - 1)
                transformed = _transform_tiles(strip, signal, side, rows, columns)
                for kernel, (weight, bias) in enumerate(kernels):
                    # Filters that are needed once share one place in memory.
                    kept = transform_filters(weight) if once else filters[kernel]
                    shape = TILE, TILE, rows * columns, len(weight)
                    products = take("products", shape)
                    _multiply(transformed, kept, products.flatten(0, 1))
                    half = take("half", (side, *shape[1:]))
                    torch.mm(inverse, products.view(TILE, -1), out=half.view(side, -1))
                    values = take("values", (side, side, *shape[2:]))
                    torch.bmm(inverse.expand(side, -1, -1), half.flatten(2), out=values.flatten(2))
                    values = values.flatten(0, 2)
                    if bias is not None:
                        values += bias
                    yield Block(values, picture, kernel, top, left, (side, rows, columns))


def _multiply(tiles: Tensor, filters: Tensor, out: Tensor) -> None:
    """Transformed tiles [36, T, C] times transformed filters [36, C, O] -> out [36, T, O]."""
    if not by_onednn(tiles):
        torch.bmm(tiles, filters, out=out)
        return
    for x, weight, y in zip(tiles.unbind(), filters.mT.unbind(), out.unbind()):
        y.copy_(onednn_linear(x, weight))


def _cut(source: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """The rectangle of ``source`` [H, W, C] from (top, left), which may lie outside, where the result is zero."""
    bottom, right = min(top + height, source.shape[0]), min(left + width, source.shape[1])
    inside = source[max(top, 0) : bottom, max(left, 0) : right]
    strip = _workspace.take("strip", (height, width, source.shape[2]), source.dtype)
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
    take = functools.partial(_workspace.take, dtype=strip.dtype)
    overlapping = strip.as_strided((rows, TILE, line), (side * line, line, 1))
    down = take("down", (rows, TILE, line))
    torch.bmm(signal.expand(rows, -1, -1), overlapping, out=down)
    shape = TILE, TILE, rows, columns, channels  # columns of a tile before its rows
    across = take("across", shape)
    across.copy_(down.as_strided(shape, (channels, line, TILE * line, side * channels, 1)))
    transformed = take("transformed", shape)
    torch.mm(signal, across.view(TILE, -1), out=transformed.view(TILE, -1))
    return transformed.view(TILE**2, rows * columns, channels)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.conv2d`` with stride 1 and zero padding that keeps the size, channels last in memory. Not differentiable.

    x [B, C, H, W], weight [O, C, k, k] with k = 3 or 5 -> [B, O, H, W].
    """
    outputs, channels = weight.shape[:2]
    step = -(-outputs // -(-outputs * TILE**2 * channels // _FILTER_VALUES))  # parts of equal width
    starts = range(0, outputs, step)
    biases = [None] * len(starts) if bias is None else bias.split(step)
    y = empty_like(x, outputs)
    for block in blocks(x, list(zip(weight.split(step), biases, strict=True))):
        start = starts[block.kernel]
        block.store(y[:, start : start + step])
    return y
