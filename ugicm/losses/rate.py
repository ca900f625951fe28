"""Rate term: bits per pixel from likelihoods, and lambda as a function of quality."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ugicm.models.quality import interpolate


def bits_per_pixel(likelihoods: Iterable[Tensor], pixels: int) -> Tensor:
    """Return the estimated rate -sum log2 p / ``pixels`` [B] of likelihoods [B, ...] in (0, 1] (Shannon, 1948)."""
    bits = [-torch.log2(p.float()).flatten(1).sum(1) for p in likelihoods]
    return torch.stack(bits).sum(0) / pixels


def log_linear(points: tuple[float, ...], quality: Tensor) -> Tensor:
    """Return lambda [B] for qualities [B] in [0, 1], log-linear between ``points`` at evenly spaced qualities."""
    if len(points) == 1:
        return torch.full_like(quality, points[0])
    logs = torch.tensor([math.log(p) for p in points], dtype=quality.dtype, device=quality.device)
    return interpolate(logs, quality).exp()
