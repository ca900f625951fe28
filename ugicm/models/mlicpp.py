"""Entropy model of MLIC++: contexts from the anchors of a slice, the previous slice and all finished slices.

Jiang, Yang, Zhai, Ning, Gao, Wang, "MLIC: Multi-Reference Entropy Model" (ACM MM 2023) and "MLIC++" (2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ugicm.config import MlicppConfig
from ugicm.entropy.checkerboard import NON_ANCHOR, Part, keep, pack
from ugicm.entropy.model import SliceEntropyModel
from ugicm.models.context import (
    ChannelContext,
    EntropyParameters,
    InterContext,
    IntraContext,
    LatentResidualPrediction,
    LocalContext,
)


class MlicppSlices(SliceEntropyModel):
    """Slices with attention contexts: local window, inter- and intra-slice linear attention, and channel context."""

    def __init__(self, config: MlicppConfig):
        super().__init__(config.slice_widths)
        M, widths = config.M, config.parameter_widths

        def per_slice(make: Callable[[int, int], nn.Module]) -> nn.ModuleList:
            """Return ``make(channels of the finished slices, channels of the slice)`` for every slice."""
            return nn.ModuleList(make(sum(self.widths[:k]), c) for k, c in enumerate(self.widths))

        def unless_first(make: Callable[[int, int], nn.Module]) -> nn.ModuleList:
            """As :func:`per_slice`, without a network for the first slice."""
            return per_slice(lambda done, c: make(done, c) if done else nn.Identity())

        self.local = per_slice(lambda done, c: LocalContext(c))
        self.channel = unless_first(lambda done, c: ChannelContext(done, 4 * c, config.channel_widths))
        self.inter = unless_first(lambda done, c: InterContext(done, 2 * c))
        self.intra = unless_first(lambda done, c: IntraContext(c))
        self.anchor_params = per_slice(
            lambda done, c: EntropyParameters(2 * M + (6 * c if done else 0), 2 * c, widths)
        )
        self.non_anchor_params = per_slice(
            lambda done, c: EntropyParameters(2 * M + (10 * c if done else 2 * c), 2 * c, widths)
        )
        self.anchor_lrp, self.non_anchor_lrp = (
            per_slice(lambda done, c: LatentResidualPrediction(M + done + c, c, config.lrp)) for _ in range(2)
        )

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        if not done:
            return []
        past = torch.cat(done, dim=1)
        return [self.inter[k](past), self.channel[k](past)]

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        near = [pack(self.local[k](anchor), NON_ANCHOR)]
        if done:
            near.append(pack(self.intra[k](done[-1], anchor), NON_ANCHOR))
        return near

    def predict_residual(self, k: int, part: Part, hyper: Tensor, done: list[Tensor], y_hat: Tensor) -> Tensor:
        lrp = self.anchor_lrp if part is Part.ANCHOR else self.non_anchor_lrp
        hyper_mean = hyper.chunk(2, dim=1)[1]
        return y_hat + keep(lrp[k](torch.cat([hyper_mean, *done, y_hat], dim=1)), part)
