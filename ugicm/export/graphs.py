"""The parts of a compact model as modules that can be exported: tensors in, tensors out, any height and width.

Arithmetic is that of the model, in expressions that suit graphs: a checkerboard is a mask instead of packed positions.
Batches have one image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ugicm.models.compact.context import REACH, CompactSlices
from ugicm.models.ugicm import UGICM


class Analysis(nn.Module):
    """image [1, 3, H, W] in [0, 1], quality [1] -> y [1, M, H/16, W/16], not rounded."""

    def __init__(self, model: UGICM):
        super().__init__()
        self.g_a, self.gain = model.g_a, model.gain

    def forward(self, image: Tensor, quality: Tensor) -> Tensor:
        return self.g_a(image) * self.gain(quality)


class HyperAnalysis(nn.Module):
    """y [1, M, H, W] -> symbols of z [1, N, H/4, W/4]."""

    def __init__(self, model: UGICM):
        super().__init__()
        self.h_a = model.h_a
        self.register_buffer("medians", model.entropy_model.bottleneck.medians)

    def forward(self, y: Tensor) -> Tensor:
        return torch.round(self.h_a(y) - self.medians)


class Indices(nn.Module):
    """Hyper context [1, C, H, W] and the residuals of slices 0 ... k - 1, concatenated -> table rows of slice k.

    Exact: integers in float32. There is no second input for k = 0.
    """

    def __init__(self, model: UGICM, k: int):
        super().__init__()
        self.indexes, self.k, self.widths = model.entropy_model.indexes, k, model.config.slice_widths[:k]

    def forward(self, hyper: Tensor, residuals: Tensor | None = None) -> Tensor:
        earlier = [] if residuals is None else residuals.split(self.widths, dim=1)
        return self.indexes(self.k, hyper, [self.indexes.energy(r, hyper.dtype) for r in earlier])


class _Slices(nn.Module):
    """The slice loop of :class:`CompactSlices` on all positions: both halves of the checkerboard are computed whole."""

    def __init__(self, slices: CompactSlices):
        super().__init__()
        self.slices = slices
        self.near = nn.ModuleList(
            _masked_convolution(local[0], width) for local, width in zip(slices.local, slices.widths)
        )

    def forward(self, hyper: Tensor, residual: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return y_hat [1, M, H, W], given ``residual(k, mean)``: what to add to the means of slice k."""
        row, column = (torch.arange(side, device=hyper.device) for side in hyper.shape[2:])
        anchors = (row[:, None] + column) % 2 == 1
        done: list[Tensor] = []
        for k, near in enumerate(self.near):
            known = [*self.slices.past_context(k, done), hyper]
            first = self.slices.anchor_params[k](torch.cat(known, dim=1))
            local = self.slices.local[k][1](near(first + residual(k, first)))
            mean = torch.where(anchors, first, self.slices.non_anchor_params[k](torch.cat([local, *known], dim=1)))
            done.append(mean + residual(k, mean))
        return torch.cat(done, dim=1)


def _masked_convolution(pointwise: nn.Conv2d, width: int) -> nn.Conv2d:
    """Return the convolution that a layer on packed neighbors of ``width`` channels stands for. It is 0 elsewhere."""
    side = 2 * REACH + 1
    conv = nn.Conv2d(width, pointwise.out_channels, side, padding=REACH)
    with torch.no_grad():
        conv.weight.zero_().flatten(2)[:, :, 1::2] = pointwise.weight.reshape(len(conv.weight), -1, width).mT
        conv.bias.copy_(pointwise.bias)
    return conv


class Means(nn.Module):
    """Hyper context [1, C, H, W], residuals of all slices [1, M, H, W] -> y_hat [1, M, H, W]."""

    def __init__(self, model: UGICM):
        super().__init__()
        self.slices = _Slices(model.entropy_model.slices)

    def forward(self, hyper: Tensor, residuals: Tensor) -> Tensor:
        known = residuals.split(self.slices.slices.widths, dim=1)
        return self.slices(hyper, lambda k, mean: known[k])


class Residuals(nn.Module):
    """What an encoder writes: hyper context [1, C, H, W], y [1, M, H, W], coded [H, W] -> residuals, table rows.

    ``coded`` is 1 inside the coded extent, else 0. Both results are integers in float32 [1, M, H, W]. Positions of row
    0 have residual 0.
    """

    def __init__(self, model: UGICM):
        super().__init__()
        self.slices = _Slices(model.entropy_model.slices)
        self.indices = nn.ModuleList(Indices(model, k) for k in range(len(self.slices.near)))

    def forward(self, hyper: Tensor, y: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        wanted = y.split(self.slices.slices.widths, dim=1)
        residuals: list[Tensor] = []
        rows: list[Tensor] = []

        def residual(k: int, mean: Tensor) -> Tensor:
            if k == len(rows):
                rows.append(self.indices[k](hyper, torch.cat(residuals, dim=1) if k else None))
            rounded = torch.round(wanted[k] - mean) * coded * (rows[k] > 0)
            residuals[k:] = [rounded]  # the second call of a slice has the means of both halves
            return rounded

        self.slices(hyper, residual)
        return torch.cat(residuals, dim=1), torch.cat(rows, dim=1)


class Synthesis(nn.Module):
    """y_hat [1, M, H/16, W/16], quality [1] -> human, difference.

    The image for preference beta is ``human + beta * difference``, each [1, 3, H, W], not clamped.
    """

    def __init__(self, model: UGICM):
        super().__init__()
        self.g_s, self.gain = model.g_s, model.gain

    def forward(self, y_hat: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        human, features, condition = self.g_s.trunk(y_hat / self.gain(quality), quality)
        if self.g_s.machine is None:
            return human, torch.zeros_like(human)
        return human, self.g_s.machine(features, condition)
