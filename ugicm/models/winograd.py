"""3x3 convolution with half of the multiplications, on the CPU in float32, outside training.

Four rows of the output at a time are made of six rows of the input, all of them transformed downwards (Winograd's
F(4, 3): "Arithmetic Complexity of Computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016). What is left are six convolutions with kernels of one row, on maps a quarter as high: 4.5
products an output instead of 9. Along the rows nothing is transformed. Transforms in both directions would halve the
products once more, but here the convolutions are oneDNN's at full speed, and the transforms are sums of whole rows;
sums of single positions, or products with small matrices, cost more than they save.

Everything goes by bands of rows, and :func:`convolve` hands each out as soon as it is done, so that what follows a
convolution (an activation, a sum) need not go through memory again. Rounding errors are up to about twice those of the
direct convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ugicm.models.bands import ALL_ROWS, bands
from ugicm.models.workspace import take

OUTPUTS = 4  # rows made at a time
INPUTS = OUTPUTS + 2  # rows they are made of
# A filter is the transpose of a product of polynomials, and these are multiplied by their values at 0, +-A, +-B and
# infinity. Among small fractions these give the least error in one direction (compare Barabasz et al., "Error Analysis
# and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020).
A, B = 0.625, 1.5
_A2, _B2 = A * A, B * B
_OF_A, _OF_B = 0.5 / (_A2 * (_A2 - _B2)), 0.5 / (_B2 * (_B2 - _A2))  # weights of the products at +-A and +-B
_VALUES = 2**19  # of a transformed band at one point, about

Kernel = tuple[Tensor, Tensor | None]  # weight [O, C, 3, 3] and bias [O]


@dataclass
class Band:
    """A convolution's outputs on some rows of one image. ``values`` [rows, W, O] may be changed in place."""

    values: Tensor
    image: int  # index in the batch
    kernel: int  # index among the kernels
    rows: slice

    def place(self, out: Tensor) -> Tensor:
        """The same rows of ``out`` [B, O, H, W], as [rows, W, O]."""
        return _rows_of(out, self.image, self.rows)


def _rows_of(maps: Tensor, image: int, rows: slice) -> Tensor:
    """Some rows of one of ``maps`` [B, C, H, W], as [rows, W, C]."""
    return maps[image, :, rows].permute(1, 2, 0)


def empty_like(x: Tensor, channels: int, scale: int = 1) -> Tensor:
    """Uninitialized [B, channels, scale H, scale W] for x [B, C, H, W], channels last in memory."""
    batch, _, height, width = x.shape
    return x.new_empty(batch, height * scale, width * scale, channels).permute(0, 3, 1, 2)


def as_image(band: Tensor) -> Tensor:
    """[rows, W, C] -> [1, C, rows, W], recognizably channels last in memory (the batch's stride counts, too)."""
    return band[None].permute(0, 3, 1, 2)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.conv2d`` with padding 1, channels last in memory. Not differentiable.

    x [B, C, H, W], weight [O, C, 3, 3] -> [B, O, H, W].
    """
    y = empty_like(x, len(weight))
    for _ in convolve(x, [(weight, bias)], out=y):
        pass
    return y


def convolve(x: Tensor, kernels: Sequence[Kernel], out: Tensor | None = None) -> Iterator[Band]:
    """Convolve x [B, C, H, W] (best channels last) with every kernel, band by band: stride 1, zero padding 1.

    With ``out`` [B, O, H, W], for one kernel, the bands' values are its memory; without, they are lost when the next
    band is asked for. Until the last one x must stay as it is, and this thread must not convolve anything else this
    way: memory for what lies in between is kept, and shared. Not differentiable.
    """
    batch, channels, height, width = x.shape
    widest = max(channels, *(len(weight) for weight, _ in kernels))
    positions = max(1, OUTPUTS * _VALUES // widest)
    transformed = [(_transform_filters(weight, i), _biases(bias)) for i, (weight, bias) in enumerate(kernels)]
    for image in range(batch):
        source = _rows_of(x, image, ALL_ROWS)
        for rows in bands(height, width, OUTPUTS, positions):
            count = -(-(rows.stop - rows.start) // OUTPUTS)
            points = _transform_rows(_rows_around(source, rows.start - 1, count), count)
            for kernel, (filters, biases) in enumerate(transformed):
                products = [
                    F.conv2d(as_image(point), at_point, bias, padding=(0, 1))[0].permute(1, 2, 0)
                    for point, at_point, bias in zip(points, filters, biases, strict=True)
                ]
                place = None if out is None else _rows_of(out, image, rows)
                complete = rows.stop - rows.start == count * OUTPUTS
                if complete and place is not None:
                    _sum_products(products, place)
                    yield Band(place, image, kernel, rows)
                    continue
                values = take("values", (count * OUTPUTS, *products[0].shape[1:]), x.dtype)
                _sum_products(products, values)
                values = values[: rows.stop - rows.start]
                yield Band(values if place is None else place.copy_(values), image, kernel, rows)


def _transform_filters(weight: Tensor, kernel: int) -> list[Tensor]:
    """weight [O, C, 3, 3] -> the filters at the six points, each [O, C, 1, 3], channels last; valid until the same
    ``kernel`` is used again."""
    shape = len(weight), 1, 3, weight.shape[1]
    filters = take(("filters", kernel), (INPUTS, *shape), weight.dtype).permute(0, 1, 4, 2, 3)
    even = take("even filters", shape, weight.dtype).permute(0, 3, 1, 2)
    above, middle, below = weight.split(1, dim=2)
    filters[0] = above
    filters[5] = below
    for point, plus, minus in ((A, filters[1], filters[2]), (B, filters[3], filters[4])):
        torch.add(above, below, alpha=point**2, out=even)
        torch.add(even, middle, alpha=point, out=plus)
        torch.add(even, middle, alpha=-point, out=minus)
    return list(filters)


def _biases(bias: Tensor | None) -> list[Tensor | None]:
    """What to add to the products at each point, so that :func:`_sum_products` adds ``bias`` to every row.

    With p and m at A and -A, and the others 0: at_0 + OF_A (p + m) = bias, A OF_A (p - m) = bias,
    A^2 OF_A (p + m) = bias, A^3 OF_A (p - m) + at_infinity = bias.
    """
    if bias is None:
        return [None] * INPUTS
    plus, minus = 0.5 * (1 / A + 1) / (A * _OF_A), 0.5 * (1 / A - 1) / (A * _OF_A)
    return [bias * (1 - 1 / _A2), bias * plus, bias * minus, None, None, bias * (1 - _A2)]


def _rows_around(source: Tensor, top: int, count: int) -> Tensor:
    """The rows of ``source`` [H, W, C], from ``top`` on, that ``count`` times four rows are made of; zero outside."""
    bottom = top + count * OUTPUTS + 2
    if top >= 0 and bottom <= len(source):
        return source[top:bottom]
    padded = take("padded", (bottom - top, *source.shape[1:]), source.dtype)
    first, last = max(-top, 0), min(bottom, len(source)) - top
    padded[:first] = 0
    padded[last:] = 0
    padded[first:last] = source[top + first : top + last]
    return padded


def _transform_rows(rows: Tensor, count: int) -> Tensor:
    """``rows`` [4 count + 2, W, C] -> their transforms at the six points [6, count, W, C]."""
    r = [rows[i : i + OUTPUTS * (count - 1) + 1 : OUTPUTS] for i in range(INPUTS)]
    points = take("points", (INPUTS, *r[0].shape), rows.dtype)
    even, odd = take("parts", (2, *r[0].shape), rows.dtype)
    torch.add(r[0], r[2], alpha=-(1 / _A2 + 1 / _B2), out=points[0]).add_(r[4], alpha=1 / (_A2 * _B2))
    torch.add(r[5], r[3], alpha=-(_A2 + _B2), out=points[5]).add_(r[1], alpha=_A2 * _B2)
    for point, other, plus, minus in ((A, _B2, points[1], points[2]), (B, _A2, points[3], points[4])):
        torch.add(r[4], r[2], alpha=-other, out=even)
        torch.add(r[3], r[1], alpha=-other, out=odd)
        torch.add(even, odd, alpha=point, out=plus)
        torch.add(even, odd, alpha=-point, out=minus)
    return points


def _sum_products(products: list[Tensor], out: Tensor) -> None:
    """The six products, each [count, W, O] and overwritten, -> rows ``out`` [4 count, W, O]."""
    at_0, plus_a, minus_a, plus_b, minus_b, at_infinity = products
    y = [out[i::OUTPUTS] for i in range(OUTPUTS)]
    even_a, even_b = take("sums", (2, *at_0.shape), at_0.dtype)
    torch.add(plus_a, minus_a, out=even_a)
    torch.add(plus_b, minus_b, out=even_b)
    odd_a, odd_b = plus_a.sub_(minus_a), plus_b.sub_(minus_b)
    torch.add(at_0.add_(even_a, alpha=_OF_A), even_b, alpha=_OF_B, out=y[0])
    torch.add(at_infinity.add_(odd_a, alpha=_OF_A * A**3), odd_b, alpha=_OF_B * B**3, out=y[3])
    torch.add(odd_a.mul_(_OF_A * A), odd_b, alpha=_OF_B * B, out=y[1])
    torch.add(even_a.mul_(_OF_A * _A2), even_b, alpha=_OF_B * _B2, out=y[2])
