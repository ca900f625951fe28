"""Continuous quality in one checkpoint: per-channel gains on the latent.

The latent is multiplied by a gain before it is rounded and divided by it after, so a gain is the inverse of a
quantisation step. Gains are trained at a few points of quality and interpolated in the logarithm between them
(gain units: Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation", CVPR 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QualityGain(nn.Module):
    """Quality in [0, 1] -> gain [B, M, 1, 1], positive.

    Starts as the same gain for every channel, from ``1 / sqrt(span)`` at quality 0 through 1 at one half to
    ``sqrt(span)`` at quality 1.
    """

    def __init__(self, channels: int, points: int, span: float = 8.0):
        super().__init__()
        start = torch.linspace(-0.5, 0.5, points)[:, None] * torch.log(torch.tensor(span))
        self.log_gain = nn.Parameter(start.expand(points, channels).clone())

    def forward(self, quality: Tensor) -> Tensor:
        position = quality.to(self.log_gain.dtype).clamp(0, 1) * (len(self.log_gain) - 1)
        lower = position.floor().clamp(max=len(self.log_gain) - 2)
        weight = (position - lower)[:, None]
        index = lower.long()
        log_gain = torch.lerp(self.log_gain[index], self.log_gain[index + 1], weight)
        return log_gain.exp()[:, :, None, None]
