"""Hyper-synthesis (h_s) and context networks of the compact model, in fixed-point layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ugicm.config import CompactConfig
from ugicm.entropy.checkerboard import NON_ANCHOR, pack_neighbors
from ugicm.entropy.fixed_point import FixedPointActivation, FixedPointConv2d, fixed_point_stack, on_grid
from ugicm.entropy.model import SliceEntropyModel

REACH = 2  # of the context from a slice's anchors: a 5x5 window
TAPS = (2 * REACH + 1) ** 2 // 2  # anchors in the window around a non-anchor


class CompactHyperSynthesis(nn.Sequential):
    """h_s: z_hat [B, N, H/64, W/64] -> hyper context [B, hyper_width, H/16, W/16]."""

    def __init__(self, config: CompactConfig):
        width = config.N
        super().__init__(
            FixedPointConv2d(width, width, 3), FixedPointActivation(),
            FixedPointConv2d(width, 4 * width), nn.PixelShuffle(2), FixedPointActivation(),
            FixedPointConv2d(width, width, 3), FixedPointActivation(),
            FixedPointConv2d(width, 4 * width), nn.PixelShuffle(2), FixedPointActivation(),
            FixedPointConv2d(width, config.hyper_width, 3), FixedPointActivation(),
        )  # fmt: skip

    def forward(self, z_hat: Tensor) -> Tensor:
        return super().forward(on_grid(z_hat))


class CompactSlices(SliceEntropyModel):
    """Slices with convolutional contexts: 3x3 over the finished slices, masked 5x5 over the anchors of this slice."""

    def __init__(self, config: CompactConfig):
        super().__init__(config.slice_widths)
        context, hidden = config.context_width, config.parameter_widths
        past = [sum(self.widths[:k]) for k in range(len(self.widths))]
        self.channel = nn.ModuleList(
            nn.Sequential(FixedPointConv2d(c, context, 3), FixedPointActivation()) if c else nn.Identity()
            for c in past
        )
        self.local = nn.ModuleList(
            nn.Sequential(FixedPointConv2d(TAPS * c, context), FixedPointActivation()) for c in self.widths
        )
        known = [config.hyper_width + (context if c else 0) for c in past]
        self.anchor_params = nn.ModuleList(
            fixed_point_stack(n, *hidden, 2 * c) for n, c in zip(known, self.widths)
        )
        self.non_anchor_params = nn.ModuleList(
            fixed_point_stack(n + context, *hidden, 2 * c) for n, c in zip(known, self.widths)
        )
        for params in (*self.anchor_params, *self.non_anchor_params):
            nn.init.constant_(params[-1].bias[: len(params[-1].bias) // 2], 1.0)  # start with scale 1

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        return [self.channel[k](on_grid(torch.cat(done, dim=1)))] if done else []

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        return [self.local[k](pack_neighbors(on_grid(anchor), NON_ANCHOR, REACH))]
