"""Rate and distortion of decoded 8-bit RGB images: bits per pixel, PSNR and MS-SSIM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ugicm.extras import require_packages
from ugicm.images import to_tensor

MAX_PSNR = 100.0  # dB


def psnr(original: Image.Image, decoded: Image.Image, weights: Sequence[float] | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB over all RGB samples, at most ``MAX_PSNR``, as for equal images.

    Without a limit, an image that is exact at a high rate would leave the mean over images, or make it infinite.
    ``weights``: compare weighted sums of the channels instead. Raises ValueError for images of different sizes.
    """
    if original.size != decoded.size:
        raise ValueError(f"images of different sizes cannot be compared: {original.size} and {decoded.size}")
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (original, decoded))
    if weights is not None:
        a, b = a @ weights, b @ weights
    mse = np.mean((a - b) ** 2)
    return MAX_PSNR if mse == 0 else min(float(10 * np.log10(255**2 / mse)), MAX_PSNR)


def ms_ssim(original: Image.Image, decoded: Image.Image) -> float | None:
    """Return the multi-scale structural similarity (Wang et al. 2003) in [0, 1] over RGB, by pytorch-msssim.

    None for an image with a side under 161 pixels, which is too small for five scales.
    Raises ValueError for images of different sizes.
    """
    require_packages("eval", "MS-SSIM", "pytorch_msssim")
    import torch
    from pytorch_msssim import ms_ssim as compute

    from ugicm.losses.distortion import MS_SSIM_SMALLEST

    if min(original.size) < MS_SSIM_SMALLEST:
        return None
    with torch.inference_mode():
        a, b = (to_tensor(image.convert("RGB")) for image in (original, decoded))
        return float(compute(a, b, data_range=1.0))


def file_bpp(data: bytes, original: Image.Image) -> float:
    """Return the bits of a file, headers included, per pixel of the original image."""
    return 8 * len(data) / (original.width * original.height)
