"""3x3 convolution layer with a fast CPU implementation for wide layers.

In inference in float32 on the CPU, four output rows are computed from six input rows by Winograd's F(4, 3): six
convolutions with 1x3 kernels on maps of a quarter of the height, 4.5 instead of 9 multiplications per output (Winograd,
"Arithmetic Complexity of Computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016). Only the height is transformed, because sums of whole rows are cheap. Rounding errors are at most about twice
those of the direct convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUTS = 4  # rows of an output tile, computed from OUTPUTS + 2 input rows
# Interpolation points: 0, P, -P, Q, -Q and infinity. Among small fractions these have the least rounding error.
P, Q = 0.625, 1.5
P2, Q2 = P * P, Q * Q
BAND_VALUES = 2**19  # per interpolation point, so that a band of tiles stays in the cache
MIN_POSITIONS = 512  # below, transforming the filters takes too long
MIN_PRODUCTS = 2**26  # per kernel tap; below, the direct convolution is faster


class Conv3x3(nn.Conv2d):
    """3x3 convolution with zero padding. [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        positions = len(x) * x.shape[2] * x.shape[3]
        if (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and self.stride == (1, 1)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and positions >= MIN_POSITIONS
            and positions * self.in_channels * self.out_channels >= MIN_PRODUCTS
        ):
            return winograd(x, self.weight, self.bias)
        return super().forward(x)


def winograd(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``F.conv2d(x, weight, bias, padding=1)`` in channels_last memory format. Not differentiable."""
    batch, channels, height, width = x.shape
    filters = _transform_filters(weight)
    tiles = -(-height // OUTPUTS)
    step = max(1, BAND_VALUES // (width * max(channels, len(weight))))  # tiles per band
    y = x.new_empty(batch, tiles * OUTPUTS, width, len(weight))
    for image, result in zip(x.permute(0, 2, 3, 1), y):
        for first in range(0, tiles, step):
            last = min(first + step, tiles)
            top, bottom = first * OUTPUTS - 1, last * OUTPUTS + 1
            rows = image[max(top, 0) : bottom]
            if top < 0 or bottom > height:
                rows = F.pad(rows, (0, 0, 0, 0, max(-top, 0), max(bottom - height, 0)))
            products = [
                F.conv2d(point[None].permute(0, 3, 1, 2), at_point, padding=(0, 1))[0].permute(1, 2, 0)
                for point, at_point in zip(_transform_rows(rows, last - first), filters)
            ]
            band = result[first * OUTPUTS : last * OUTPUTS]
            _combine(products, band)
            band += bias
    return y[:, :height].permute(0, 3, 1, 2)


def _transform_filters(weight: Tensor) -> list[Tensor]:
    """Return the filters at the six points, [O, C, 1, 3] each, scaled as :func:`_combine` expects."""
    above, middle, below = weight.split(1, dim=2)
    filters = [above]
    for point, scale in ((P, 0.5 / (P2 * (P2 - Q2))), (Q, 0.5 / (Q2 * (Q2 - P2)))):
        even, odd = scale * (above + point**2 * below), scale * point * middle
        filters += [even + odd, even - odd]
    return [f.contiguous(memory_format=torch.channels_last) for f in (*filters, below)]


def _transform_rows(rows: Tensor, count: int) -> Tensor:
    """Return the values of the rows [4 count + 2, W, C] at the six points, [6, count, W, C]."""
    r = [rows[i : i + OUTPUTS * (count - 1) + 1 : OUTPUTS] for i in range(OUTPUTS + 2)]
    points = rows.new_empty(OUTPUTS + 2, *r[0].shape)
    torch.add(r[0], r[2], alpha=-(1 / P2 + 1 / Q2), out=points[0]).add_(r[4], alpha=1 / (P2 * Q2))
    torch.add(r[5], r[3], alpha=-(P2 + Q2), out=points[5]).add_(r[1], alpha=P2 * Q2)
    for point, other, plus, minus in ((P, Q2, points[1], points[2]), (Q, P2, points[3], points[4])):
        even, odd = torch.sub(r[4], r[2], alpha=other), torch.sub(r[3], r[1], alpha=other)
        torch.add(even, odd, alpha=point, out=plus)
        torch.sub(even, odd, alpha=point, out=minus)
    return points


def _combine(products: list[Tensor], out: Tensor) -> None:
    """Write the output rows [4 count, W, O], given the products at the six points, [count, W, O] each."""
    at_0, plus_p, minus_p, plus_q, minus_q, at_infinity = products
    y = [out[i::OUTPUTS] for i in range(OUTPUTS)]
    even_p, even_q = plus_p + minus_p, plus_q + minus_q
    odd_p, odd_q = plus_p.sub_(minus_p).mul_(P), plus_q.sub_(minus_q).mul_(Q)
    torch.add(even_p, even_q, out=y[0]).add_(at_0)
    torch.add(odd_p, odd_q, out=y[1])
    torch.add(even_p.mul_(P2), even_q, alpha=Q2, out=y[2])
    torch.add(at_infinity.add_(odd_p, alpha=P2), odd_q, alpha=Q2, out=y[3])
