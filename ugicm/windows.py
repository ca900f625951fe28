"""Analysis and synthesis of images of any size in bounded memory: one window at a time, with a halo around it.

The halo is as wide as the receptive field of the networks, and only the inside of a window is kept: the result is that
of the whole image, without seams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ugicm import images, progress
from ugicm.models.ugicm import UGICM
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut

WINDOW = 4096  # side in pixels


def analyze(model: UGICM, levels: Tensor, quality: Tensor) -> Tensor:
    """Return y of a padded image, uint8 [1, 3, H, W] on the CPU. Only a window at a time is in float32.

    ``quality`` is [1] on the device of the model.
    """
    padded = Box(0, 0, levels.shape[3], levels.shape[2])
    windows = list(cut(padded, WINDOW))
    y = None
    for window in progress.steps(windows, "analyzing", "window"):
        around = window.grown(model.config.halo, padded)
        piece = levels[..., *around.slices()].to(quality.device)
        piece = piece.to(torch.float32, memory_format=torch.channels_last).div_(255)
        part = model.analyze(piece, quality)[..., *window.within(around).slices(Y_STRIDE)]
        if len(windows) == 1:
            return part
        if y is None:
            y = part.new_empty(1, model.config.M, padded.height // Y_STRIDE, padded.width // Y_STRIDE)
        y[..., *window.slices(Y_STRIDE)] = part
    return y


def synthesize(model: UGICM, y_hat: Tensor, betas: Sequence[Tensor], quality: Tensor, view: Box) -> list[Image.Image]:
    """Return the part of the image in ``view``, a box in pixels, for each preference.

    Args:
        model: the network.
        y_hat: latents of the padded image, [1, M, H/16, W/16].
        betas: preferences, each [1], or a map [1, 1, h, w] of the image's size.
        quality: [1] on the device of the model.
        view: what to show.
    """
    betas = [images.pad_to(beta, Z_STRIDE) if beta.dim() == 4 else beta for beta in betas]
    padded = Box(0, 0, y_hat.shape[3] * Y_STRIDE, y_hat.shape[2] * Y_STRIDE)
    shown = [Image.new("RGB", (view.width, view.height), None) for _ in betas]  # uninitialized
    for window in progress.steps(cut(view, WINDOW), "synthesizing", "window"):
        around = window.grown(model.config.halo, padded).aligned(Y_STRIDE)
        own = [beta[..., *around.slices()] if beta.dim() == 4 else beta for beta in betas]
        decoded = model.synthesize_each(y_hat[..., *around.slices(Y_STRIDE)], own, quality)
        for image, x_hat in zip(shown, decoded, strict=True):
            piece = images.from_tensor(x_hat[..., *window.within(around).slices()])
            image.paste(piece, (window.left - view.left, window.top - view.top))
    return shown
