"""Continuous quality in one checkpoint: per-channel gains on the latent.

The latent is multiplied by a gain before it is rounded and divided by it after, so a gain is the inverse of a
quantization step. Gains are trained at a few points of quality and interpolated in the logarithm between them
(gain units: Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation", CVPR 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def interpolate(points: Tensor, quality: Tensor) -> Tensor:
    """Values at any quality from those at evenly spaced ones, linear between. points [n >= 2, ...], quality [B] in
    [0, 1] -> [B, ...]."""
    position = quality.to(points.dtype).clamp(0, 1) * (len(points) - 1)
    lower = position.floor().clamp(max=len(points) - 2)
    weight = (position - lower).reshape(-1, *[1] * (points.dim() - 1))
    index = lower.long()
    return torch.lerp(points[index], points[index + 1], weight)


class QualityGain(nn.Module):
    """Quality in [0, 1] -> gain [B, M, 1, 1], positive.

    Starts as the same gain for every channel, from ``1 / sqrt(SPAN)`` at quality 0 through 1 at one half to
    ``sqrt(SPAN)`` at quality 1.
    """

    SPAN = 8.0

    def __init__(self, channels: int, points: int):
        super().__init__()
        start = torch.linspace(-0.5, 0.5, points)[:, None] * torch.log(torch.tensor(self.SPAN))
        self.log_gain = nn.Parameter(start.expand(points, channels).clone())

    def forward(self, quality: Tensor) -> Tensor:
        return interpolate(self.log_gain, quality).exp()[:, :, None, None]
