"""Continuous rate adaptation: per-channel gains of the latent.

The latent is multiplied by a gain before rounding and divided by it afterwards, so a gain is the inverse of a
quantization step. Gains are trained at a few quality points and interpolated in the logarithmic domain (gain units:
Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation", CVPR 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def interpolate(points: Tensor, quality: Tensor) -> Tensor:
    """Interpolate linearly between values at evenly spaced qualities.

    points [n, ...] with n >= 2, quality [B] in [0, 1] -> [B, ...].
    """
    position = quality.to(points.dtype).clamp(0, 1) * (len(points) - 1)
    lower = position.floor().clamp(max=len(points) - 2)
    weight = (position - lower).reshape(-1, *[1] * (points.dim() - 1))
    index = lower.long()
    return torch.lerp(points[index], points[index + 1], weight)


class QualityGain(nn.Module):
    """Trained gain of each latent channel. Quality [B] in [0, 1] -> gain [B, M, 1, 1], positive.

    All channels start with the same gain: ``1 / sqrt(SPAN)`` at quality 0, 1 at 0.5, ``sqrt(SPAN)`` at 1.
    """

    SPAN = 8.0

    def __init__(self, channels: int, points: int):
        super().__init__()
        start = torch.linspace(-0.5, 0.5, points)[:, None] * torch.log(torch.tensor(self.SPAN))
        self.log_gain = nn.Parameter(start.expand(points, channels).clone())

    def forward(self, quality: Tensor) -> Tensor:
        return interpolate(self.log_gain, quality).exp()[:, :, None, None]


class UnitGain(nn.Module):
    """Gain of a model without trained quality points: 1 at every quality, [B, 1, 1, 1]."""

    def forward(self, quality: Tensor) -> Tensor:
        return quality.new_ones(len(quality), 1, 1, 1)
