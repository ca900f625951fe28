"""Rate: the estimated length of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ugicm.models.quality import interpolate


def bits_per_pixel(likelihoods: Iterable[Tensor], pixels: int) -> Tensor:
    """-sum log2 p / pixels for every image (Shannon). Likelihoods are [B, ...] in (0, 1] -> [B], bits per pixel."""
    bits = [-torch.log2(p.float()).flatten(1).sum(1) for p in likelihoods]
    return torch.stack(bits).sum(0) / pixels


def log_linear(points: tuple[float, ...], quality: Tensor) -> Tensor:
    """lambda of quality [B] in [0, 1]: ``points`` at evenly spaced qualities, linear in the logarithm between."""
    if len(points) == 1:
        return torch.full_like(quality, points[0])
    logs = torch.tensor([math.log(p) for p in points], dtype=quality.dtype, device=quality.device)
    return interpolate(logs, quality).exp()
