"""Distortions between pictures for human eyes. Pictures are [B, 3, H, W] in [0, 1]; each returns [B]."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """255² times the mean squared error: the squared error of 8-bit values."""
    return 255**2 * (x_hat - x).square().flatten(1).mean(1)


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of the pictures as they would be saved: clamped, 8 bits."""
    saved = torch.round(x_hat.clamp(0, 1) * 255) / 255
    return -10 * torch.log10((saved - x).square().flatten(1).mean(1).clamp_min(1e-10))
