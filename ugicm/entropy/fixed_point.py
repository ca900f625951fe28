"""Convolutions whose results are the same integers on every machine.

A stream is parsed with probabilities that a network computes, so a difference in the last bit of a float can
derail the entropy decoder. Float sums differ between machines because their order does. Here, every operand is a
multiple of a power of two (weights of 2^-16, activations of 2^-14, bounded by 2^12) held in float64, and every
sum stays below 2^53 units of the last place: no addition ever rounds, so their order, the number of threads, the
instruction set and fused multiply-adds make no difference. (The idea of integer networks for entropy models:
Ballé, Johnston, Minnen, "Integer Networks for Data Compression with Latent-Variable Models", ICLR 2019; here
with 26-bit activations, so that no retraining is needed.)

What lies between the convolutions must be exact too: concatenation, pixel shuffles, and a leaky ReLU whose slope is
a power of two, which also rounds: whatever enters a convolution has been through :func:`activation` or :func:`on_grid`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.errors import CheckpointError

ACTIVATION_STEP = 2.0**-14
ACTIVATION_LIMIT = 2.0**12
WEIGHT_STEP = 2.0**-16
SLOPE = 2.0**-3


def to_grid(x: Tensor) -> Tensor:
    """Round float64 values, in place, to multiples of 2^-14 within +-2^12."""
    return x.mul_(1 / ACTIVATION_STEP).round_().mul_(ACTIVATION_STEP).clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def on_grid(x: Tensor) -> Tensor:
    """What convolutions may take: x itself in training, a rounded copy where x is float64."""
    return to_grid(x.clone()) if x.dtype == torch.float64 else x


def activation(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 1/8, exact in binary, and rounding where x is float64. May overwrite x outside training."""
    x = F.leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())
    return to_grid(x) if x.dtype == torch.float64 else x


class FixedPointActivation(nn.Module):
    """:func:`activation` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return activation(x)


class FixedPointConv2d(nn.Conv2d):
    """A convolution that trains in floating point and, once its weights are float64, computes exactly, given inputs on
    the grid (:func:`on_grid`).

    Call :meth:`round_weights` after converting to float64 (:meth:`ugicm.models.ugicm.UGICM.prepare_for_coding`
    does). Padding is zero, ``kernel_size // 2``, stride 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    @torch.no_grad()
    def round_weights(self) -> None:
        """Put the float64 weights and biases on their grids; raises CheckpointError if a sum could leave 2^53."""
        self.weight.copy_(torch.round(self.weight / WEIGHT_STEP) * WEIGHT_STEP)
        unit = WEIGHT_STEP * ACTIVATION_STEP
        self.bias.copy_(torch.round(self.bias / unit) * unit)
        largest = self.weight.abs().sum(dim=(1, 2, 3)) * ACTIVATION_LIMIT + self.bias.abs()
        if not bool((largest / unit < 2.0**53).all()):
            raise CheckpointError(
                f"weights of a {self.in_channels}->{self.out_channels} parsing layer are too large for exact sums: "
                f"{largest.max().item():.4g}, limit {2.0**53 * unit:.4g}"
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype != torch.float64:
            return super().forward(x)
        if self.kernel_size == (1, 1):  # a plain matrix product; float64 convolutions are slower
            y = torch.matmul(self.weight.flatten(1), x.flatten(2)).unflatten(2, x.shape[2:])
            return y.add_(self.bias[:, None, None])
        return self._sum_over_taps(x)

    def _sum_over_taps(self, x: Tensor) -> Tensor:
        """The convolution as a matrix product for each place in the kernel. There is no fast one for float64, and those
        of cuDNN may have intermediate values that are not on the grid."""
        height, width = x.shape[-2:]
        reach = self.padding[0]
        line = width + 2 * reach  # in memory, the row above begins one line earlier
        padded = F.pad(x, (reach, reach, reach, reach)).flatten(2)
        count = height * line - 2 * reach
        y = x.new_empty(len(x), self.out_channels, height * line)
        for image, out in zip(padded, y[:, :, :count], strict=True):
            out.copy_(self.bias[:, None])
            for row in range(self.kernel_size[0]):
                for column in range(self.kernel_size[1]):
                    start = row * line + column
                    out.addmm_(self.weight[:, :, row, column], image[:, start : start + count])
        return y.unflatten(2, (height, line))[..., :width]


def fixed_point_stack(*widths: int) -> nn.Sequential:
    """1x1 convolutions ``widths[0] -> widths[1] -> ...`` with activations between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [FixedPointConv2d(width_in, width_out), FixedPointActivation()]
    return nn.Sequential(*layers[:-1])
