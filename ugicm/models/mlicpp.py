"""MLIC++'s entropy model: attention over this slice's anchors, the previous slice and all finished slices.

Jiang, Yang, Zhai, Ning, Gao, Wang, "MLIC: Multi-Reference Entropy Model" (ACM MM 2023) and "MLIC++" (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ugicm.config import ModelConfig
from ugicm.entropy.checkerboard import REST, Part, keep, pack
from ugicm.entropy.model import SliceEntropyModel
from ugicm.models.context import (
    ChannelContext,
    EntropyParameters,
    InterContext,
    IntraContext,
    LatentResidualPrediction,
    LocalContext,
)


class AttentionSlices(SliceEntropyModel):
    """MLIC++'s contexts: local window attention, channel, inter- and intra-slice linear attention."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.widths)
        hyper = 2 * config.M
        past = [sum(self.widths[:k]) for k in range(len(self.widths))]

        def each(make, first=None) -> nn.ModuleList:
            """One network a slice; the first slice has no past and may go without."""
            return nn.ModuleList(
                nn.Identity() if first is None and not done else make(done, c) for done, c in zip(past, self.widths)
            )

        self.local = each(lambda done, c: LocalContext(c, config.window), first=True)
        self.channel = each(lambda done, c: ChannelContext(done, 4 * c, config.channel_widths))
        self.inter = each(lambda done, c: InterContext(done, 2 * c))
        self.intra = each(lambda done, c: IntraContext(c))
        self.anchor_params = each(
            lambda done, c: EntropyParameters(hyper + (6 * c if done else 0), 2 * c, config.parameter_widths), True
        )
        self.rest_params = each(
            lambda done, c: EntropyParameters(hyper + (10 * c if done else 2 * c), 2 * c, config.parameter_widths), True
        )
        self.anchor_lrp = self.rest_lrp = None
        if config.lrp != "none":
            self.anchor_lrp, self.rest_lrp = (
                each(lambda done, c: LatentResidualPrediction(config.M + done + c, c, config.lrp), True)
                for _ in range(2)
            )

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        if not done:
            return []
        past = torch.cat(done, dim=1)
        return [self.inter[k](past), self.channel[k](past)]

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        near = [pack(self.local[k](anchor), REST)]
        if done:
            near.append(pack(self.intra[k](done[-1], anchor), REST))
        return near

    def predict_residual(self, k: int, part: Part, hyper: Tensor, done: list[Tensor], y_hat: Tensor) -> Tensor:
        lrp = self.anchor_lrp if part is Part.ANCHOR else self.rest_lrp
        if lrp is None:
            return y_hat
        hyper_mean = hyper.chunk(2, dim=1)[1]
        return y_hat + keep(lrp[k](torch.cat([hyper_mean, *done, y_hat], dim=1)), part)
