"""Convolutions whose results are equal on every machine.

Entropy decoding uses probabilities that a network computes, so that a difference in the last bit of a float can derail
it. Floating point sums differ between machines because their order does. In this module, every operand is a multiple of
a power of two (weights of 2^-16, activations of 2^-14, bounded by 2^12) stored in float64, and every sum stays below
2^53 units of the last place. No addition is rounded, so that the order of sums, the number of threads, the instruction
set and fused multiply-adds have no effect. (Integer networks for entropy models: Ballé, Johnston, Minnen, "Integer
Networks for Data Compression with Latent-Variable Models", ICLR 2019. 26-bit activations make retraining unnecessary.)

Operations between convolutions must be exact, too: concatenation, pixel shuffles, and a leaky ReLU whose slope is a
power of two. Every input of a convolution is rounded by :func:`activation` or :func:`on_grid`.
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
    """Return an input for convolutions: a rounded copy of float64 values, x itself of others (in training)."""
    return to_grid(x.clone()) if x.dtype == torch.float64 else x


def activation(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 1/8, then rounding of float64 values. May overwrite x if gradients are disabled."""
    x = F.leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())
    return to_grid(x) if x.dtype == torch.float64 else x


class FixedPointActivation(nn.Module):
    """:func:`activation` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return activation(x)


class FixedPointConv2d(nn.Conv2d):
    """Convolution that is exact if weights are float64 and rounded, and inputs are on the grid (:func:`on_grid`).

    It is trained in floating point. For coding, convert it to float64 and call :meth:`round_weights`, as
    :meth:`ugicm.models.ugicm.UGICM.prepare_for_coding` does. Stride is 1, with zero padding of ``kernel_size // 2``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the float64 weights and biases to their grids. Raises CheckpointError if a sum could exceed 2^53."""
        self.weight.copy_(torch.round(self.weight / WEIGHT_STEP) * WEIGHT_STEP)
        unit = WEIGHT_STEP * ACTIVATION_STEP
        self.bias.copy_(torch.round(self.bias / unit) * unit)
        largest = self.weight.abs().sum(dim=(1, 2, 3)) * ACTIVATION_LIMIT + self.bias.abs()
        if not bool((largest / unit < 2.0**53).all()):
            raise CheckpointError(
                f"weights of a {self.in_channels}->{self.out_channels} layer of the entropy model are too large for "
                f"exact sums: {largest.max().item():.4g}, limit {2.0**53 * unit:.4g}"
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype != torch.float64:
            return super().forward(x)
        if self.kernel_size == (1, 1):  # a plain matrix product; float64 convolutions are slower
            y = torch.matmul(self.weight.flatten(1), x.flatten(2)).unflatten(2, x.shape[2:])
            return y.add_(self.bias[:, None, None])
        return self._sum_over_taps(x)

    def _sum_over_taps(self, x: Tensor) -> Tensor:
        """Compute the convolution as one matrix product per kernel position.

        PyTorch's float64 convolutions are slow, and cuDNN's may have intermediate values that are not on the grid.
        """
        height, width = x.shape[-2:]
        reach = self.padding[0]
        line = width + 2 * reach  # distance in memory between rows
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
    """Return 1x1 convolutions ``widths[0] -> widths[1] -> ...`` with activations between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [FixedPointConv2d(width_in, width_out), FixedPointActivation()]
    return nn.Sequential(*layers[:-1])
