"""How far a decoded image is from the original, on the 8-bit RGB images that people and networks get."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ugicm.images import to_tensor


def psnr(original: Image.Image, decoded: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB over all RGB samples; infinite for equal images.

    Raises ValueError for images of different sizes.
    """
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in _of_one_size(original, decoded))
    mse = np.mean((a - b) ** 2)
    return math.inf if mse == 0 else float(10 * np.log10(255**2 / mse))


def ms_ssim(original: Image.Image, decoded: Image.Image) -> float | None:
    """Multi-scale structural similarity (Wang et al. 2003) in [0, 1] over RGB, as pytorch-msssim computes it.

    None for an image with a side under 161 pixels, for which its five scales do not exist.
    Raises ValueError for images of different sizes.
    """
    import torch
    from pytorch_msssim import ms_ssim as compute

    from ugicm.losses.distortion import MS_SSIM_SMALLEST

    if min(_of_one_size(original, decoded)[0].size) < MS_SSIM_SMALLEST:
        return None
    with torch.inference_mode():
        a, b = (to_tensor(image.convert("RGB")) for image in (original, decoded))
        return float(compute(a, b, data_range=1.0))


def bits_per_pixel(data: bytes, original: Image.Image) -> float:
    """Bits of the whole file, headers included, per pixel of the original image."""
    return 8 * len(data) / (original.width * original.height)


def _of_one_size(original: Image.Image, decoded: Image.Image) -> tuple[Image.Image, Image.Image]:
    if original.size != decoded.size:
        sizes = (f"{image.width}x{image.height}" for image in (original, decoded))
        raise ValueError("images of different sizes cannot be compared: {} and {}".format(*sizes))
    return original, decoded
