"""Entropy model networks of the compact model.

What decides probabilities is small and exact: :class:`CompactHyperSynthesis` and :class:`CompactIndexes` are
:mod:`ugicm.entropy.integer` layers, whose inputs are decoded integers. What predicts means is larger and in float32:
:class:`CompactSlices`. Means decide no probability, so that they may differ in the last digits between machines.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import CompactConfig
from ugicm.entropy.checkerboard import NON_ANCHOR, pack_neighbors
from ugicm.entropy.integer import UNIT, IntegerLayer, neighborhood, pixel_shuffle, to_levels
from ugicm.entropy.lower_bound import LowerBound
from ugicm.entropy.model import SliceEntropyModel
from ugicm.models.layers import Pointwise, conv3x3

REACH = 2  # of the context from a slice's anchors: a 5x5 window
TAPS = (2 * REACH + 1) ** 2 // 2  # anchors in the window around a non-anchor
Z_STEP = 0.25  # a unit of z counts as 4 in integer layers
# Index networks see |r|, up to 8, and its sum over 3x3 positions, up to 31; a unit counts as so many levels.
LARGEST_RESIDUAL, RESIDUAL_LEVELS = 8, 8
LARGEST_NEIGHBORHOOD, NEIGHBORHOOD_LEVELS = 31, 4


class CompactHyperSynthesis(nn.Module):
    """h_s: z_hat less the medians, [B, N, H/64, W/64] -> hyper context [B, hyper_width, H/16, W/16] in [0, 8).

    The result consists of multiples of 1/16. It is equal on every machine.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        width = config.N
        self.conv1, self.up1 = IntegerLayer(9 * width, width), IntegerLayer(width, 4 * width)
        self.conv2, self.up2 = IntegerLayer(9 * width, width), IntegerLayer(width, 4 * config.hyper_width)

    def forward(self, z: Tensor) -> Tensor:
        h = to_levels(z.permute(0, 2, 3, 1), Z_STEP)
        h = pixel_shuffle(self.up1(self.conv1(neighborhood(h))))
        h = pixel_shuffle(self.up2(self.conv2(neighborhood(h))))
        return (h / UNIT).permute(0, 3, 1, 2)


class CompactIndexes(nn.Module):
    """Table rows of slice k, from the hyper context and the magnitudes of the residuals of earlier slices.

    hyper [B, hyper_width, H, W] and the :meth:`energy` of each earlier slice -> rows [B, C_k, H, W]: integers from 0 to
    ``scale_levels - 1`` in floating point, equal on every machine. In training they are not rounded.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        widths, context = config.slice_widths, config.context_width
        past = [sum(widths[:k]) for k in range(len(widths))]
        self.channel = nn.ModuleList(IntegerLayer(2 * c, context) if c else nn.Identity() for c in past)
        self.networks = nn.ModuleList()
        for c, width in zip(past, widths):
            *hidden, last = pairwise((config.hyper_width + (context if c else 0), *config.index_widths, width))
            layers = [IntegerLayer(*sizes) for sizes in hidden] + [IntegerLayer(*last, high=config.scale_levels - 1)]
            nn.init.constant_(layers[-1].bias, config.row_of_scale(1.0) / UNIT)
            self.networks.append(nn.Sequential(*layers))
        self.lowest = LowerBound(0.0)

    @staticmethod
    def energy(residual: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return magnitudes of residuals, and their sums over 3x3 positions, as levels for integer layers.

        [B, C, H, W], integers in floating point -> ``dtype`` [B, H, W, 2C].
        """
        x = residual.permute(0, 2, 3, 1).abs().clamp_(max=LARGEST_RESIDUAL).to(dtype)
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        rows = padded[:, :height] + padded[:, 1 : height + 1] + padded[:, 2:]
        total = rows[:, :, :width] + rows[:, :, 1 : width + 1] + rows[:, :, 2:]
        return torch.cat([x * RESIDUAL_LEVELS, total.clamp_(max=LARGEST_NEIGHBORHOOD) * NEIGHBORHOOD_LEVELS], dim=3)

    def forward(self, k: int, hyper: Tensor, energies: list[Tensor]) -> Tensor:
        h = hyper.permute(0, 2, 3, 1) * UNIT
        if energies:
            h = torch.cat([h, self.channel[k](torch.cat(energies, dim=3).to(h.dtype))], dim=3)
        *hidden, last = self.networks[k]
        for layer in hidden:
            h = layer(h)
        if self.training:
            rows = self.lowest(last.scaled(h) - 0.5).clamp(max=last.high)
        else:
            rows = last(h)
        return rows.permute(0, 3, 1, 2)


class _LeakyReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.125, inplace=not torch.is_grad_enabled())


def _stack(*widths: int) -> nn.Sequential:
    """Return pointwise layers ``widths[0] -> widths[1] -> ...`` with activations between them."""
    layers: list[nn.Module] = []
    for sizes in pairwise(widths):
        layers += [Pointwise(*sizes), _LeakyReLU()]
    return nn.Sequential(*layers[:-1])


class CompactSlices(SliceEntropyModel):
    """Means of the slices: contexts are 3x3 over the finished slices, masked 5x5 over the anchors of this slice."""

    context_scales = False

    def __init__(self, config: CompactConfig):
        super().__init__(config.slice_widths)
        context, hidden = config.context_width, config.parameter_widths
        past = [sum(self.widths[:k]) for k in range(len(self.widths))]
        self.channel = nn.ModuleList(
            nn.Sequential(conv3x3(c, context), _LeakyReLU()) if c else nn.Identity() for c in past
        )
        self.local = nn.ModuleList(nn.Sequential(Pointwise(TAPS * c, context), _LeakyReLU()) for c in self.widths)
        known = [config.hyper_width + (context if c else 0) for c in past]
        self.anchor_params = nn.ModuleList(_stack(n, *hidden, c) for n, c in zip(known, self.widths))
        self.non_anchor_params = nn.ModuleList(_stack(n + context, *hidden, c) for n, c in zip(known, self.widths))

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        return [self.channel[k](torch.cat(done, dim=1))] if done else []

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        return [self.local[k](pack_neighbors(anchor, NON_ANCHOR, REACH))]
