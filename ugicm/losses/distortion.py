"""Distortion measures: (reconstruction, original), both [B, 3, H, W] with originals in [0, 1] -> [B].

Both are float32, and reconstructions may exceed [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ugicm.extras import require_packages

MS_SSIM_SMALLEST = 161  # pixels: five scales of an 11 x 11 window


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return the mean squared error on the scale of 8-bit values, 255² times that of [0, 1]."""
    return 255**2 * (x_hat - x).square().flatten(1).mean(1)


def batch_psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return the PSNR in dB after clamping and rounding to 8 bits; 100 dB for identical images."""
    saved = torch.round(x_hat.clamp(0, 1) * 255) / 255
    return -10 * torch.log10((saved - x).square().flatten(1).mean(1).clamp_min(1e-10))


def structural_dissimilarity(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return 1 - MS-SSIM with five scales; sides must be at least ``MS_SSIM_SMALLEST`` pixels.

    Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
    """
    require_packages("train", "MS-SSIM", "pytorch_msssim")
    from pytorch_msssim import ms_ssim

    return 1 - ms_ssim(x_hat, x, data_range=1.0, size_average=False)
