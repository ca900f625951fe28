"""Latent refinement: adapt the latents of one image before they are coded, for fewer bits at the same quality.

The analysis transform is good for images in general. For a single image, rate + slope * distortion can be lowered by
gradient descent on y itself, through the entropy model and the synthesis transform, which do not change: every decoder
decodes the result, in the same time (Campos, Meierhans, Djelouah, Schroers, "Content Adaptive Optimization for Neural
Image Compression", CVPR workshops 2019). Rounding is relaxed to a differentiable function that approaches rounding
during the descent (after Yang, Bamler, Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020, without
its noise).

The distortion is the squared error of the image for human preference, or the change of the image for machine preference
by quantization. The slope, the bits that a unit of distortion is worth, is measured on the model by quantizing y a
little finer and a little coarser.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor
from tqdm import tqdm

from ugicm.bitstream import coded_extent
from ugicm.entropy.checkerboard import Part, pack
from ugicm.entropy.likelihood import LikelihoodCoder
from ugicm.entropy.model import Coder, EntropyModel
from ugicm.models.ugicm import UGICM
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut

WINDOW = 768  # side in pixels of what is refined at a time; memory grows with the square of it and its halo
SOFT, HARD = 0.1, 0.01  # softness of the relaxed rounding at the beginning and the end, in symbols
LEARNING_RATE = 7e-3  # in symbols per step; decreases to a tenth
EPSILON = 0.2  # of Adam, in bits per symbol: smaller gradients move their symbol by less than LEARNING_RATE
STRETCH = 1.2  # factor on y, either way, to measure the slope


class RelaxedCoder(Coder):
    """Round differentiably and sum up bits.

    A residual f between the integers n and n + 1 becomes n + w, with w = sigmoid((f - n - 1/2) / softness), and costs
    (1 - w) times the bits of n plus w times those of n + 1. ``bits`` is the sum over y.
    """

    def __init__(self, entropy_model: EntropyModel, softness: float, extent: tuple[int, int] | None):
        super().__init__(entropy_model, extent)
        self.softness, self.bits = softness, torch.zeros((), device=entropy_model.gaussian.scale_table.device)

    def code(self, scale: Tensor | None, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        if scale is None:
            scale = self.entropy_model.gaussian.scale_of(pack(self.rows, part))
        residual = pack(y, part) - mean
        below = residual.detach().floor()
        share = torch.sigmoid((residual - below - 0.5) / self.softness)
        not_coded = self._not_coded(part, mean)
        bits = torch.lerp(self._bits(below, scale), self._bits(below + 1, scale), share)
        self.bits = self.bits + bits.masked_fill(not_coded, 0).sum()
        residual = (below + share).masked_fill(not_coded, 0)
        self._keep(residual.round(), part)
        return mean + residual

    def _bits(self, symbols: Tensor, scale: Tensor) -> Tensor:
        return -self.entropy_model.gaussian.likelihood(symbols, scale).log2()


def refine(
    model: UGICM, x: Tensor, y: Tensor, z: Tensor, quality: Tensor, steps: int,
    size: tuple[int, int], progress: bool = False, machine: bool = False,
) -> Tensor:  # fmt: skip
    """Return refined latents. [1, M, H/16, W/16] -> same; z does not change.

    Args:
        model: prepared for coding.
        x: the padded image, [1, 3, H, W] in [0, 1].
        y, z: its latents and hyper latents, not rounded.
        quality: [1] in [0, 1].
        steps: steps of descent; each takes as long as two or three decodings.
        size: (width, height) of the image without padding.
        progress: show a progress bar.
        machine: refine for the machine preference.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if any(parameter.is_inference() for parameter in model.parameters()):
            model = copy.deepcopy(model)  # unpickled or copied in inference mode: gradients do not pass such tensors
        entropy_model = copy.deepcopy(model.entropy_model)
        x, y, z, quality = x.clone(), y.clone(), z.clone(), quality.clone()
        z_hat = entropy_model.round_hyper(z)
        padded = Box(0, 0, x.shape[3], x.shape[2])
        windows = list(cut(padded, WINDOW))
        refined = y.clone()
        with tqdm(total=steps * len(windows), desc="refining", unit="step", leave=False,
                  disable=None if progress and sys.stderr else True) as bar:  # fmt: skip
            for window in windows:
                around = window.grown(model.config.halo, padded).aligned(Z_STRIDE)
                x_window = x[..., *around.grown(0, Box(0, 0, *size)).slices()].to(y.device)
                z_window = z_hat[..., *around.slices(Z_STRIDE)]
                y_window, beta = y[..., *around.slices(Y_STRIDE)], torch.full((1,), float(machine))
                if machine:  # the image that is looked at is not the original, which this preference does not restore
                    with torch.no_grad():
                        x_hat = model.synthesize(y_window, beta, quality)
                    x_window = x_hat[..., : x_window.shape[2], : x_window.shape[3]]
                extent = coded_extent(around, *size)
                problem = _Problem(model, entropy_model, x_window, z_window, quality, beta, extent)
                better = problem.solve(y_window, steps, bar)
                refined[..., *window.slices(Y_STRIDE)] = better[..., *window.within(around).slices(Y_STRIDE)]
        return refined


class _Problem:
    """The optimization problem of one window: bits and squared error as functions of y. x is without padding."""

    def __init__(
        self, model: UGICM, entropy_model: EntropyModel, x: Tensor, z_hat: Tensor, quality: Tensor, beta: Tensor,
        extent: tuple[int, int] | None,
    ):  # fmt: skip
        self.model, self.entropy_model, self.x, self.z_hat = model, entropy_model, x, z_hat
        self.quality, self.beta, self.extent = quality, beta, extent
        with torch.no_grad():
            self.hyper = entropy_model.hyper_context(z_hat)

    def solve(self, start: Tensor, steps: int, bar: tqdm) -> Tensor:
        """Return y after the descent, or ``start`` if the result is worse when rounded, or if bits gain nothing."""
        with torch.no_grad():
            slope = self._slope(start)
            before = self._rounded(start)
        if slope is None:
            bar.update(steps)
            return start
        y = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([y], lr=LEARNING_RATE, betas=(0.9, 0.99), eps=EPSILON)
        for step in range(steps):
            done = step / max(1, steps - 1)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - 0.9 * done)
            coder = RelaxedCoder(self.entropy_model, SOFT * (HARD / SOFT) ** done, self.extent)
            error = self._error(self.entropy_model.slices(self.hyper, coder, y))
            optimizer.zero_grad()
            (coder.bits + slope * error).backward()
            optimizer.step()
            bar.update()
        y = y.detach()
        with torch.no_grad():
            bits, error = self._rounded(y)
        return y if bits + slope * error < before[0] + slope * before[1] else start

    def _error(self, y_hat: Tensor) -> Tensor:
        x_hat = self.model.synthesize(y_hat, self.beta, self.quality)
        return (x_hat[..., : self.x.shape[2], : self.x.shape[3]] - self.x).square().sum()

    def _rounded(self, y: Tensor, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return bits and squared error of y, coded after multiplication by ``stretch``."""
        coder = LikelihoodCoder(self.entropy_model, self.extent)
        y_hat = self.entropy_model.slices(self.hyper, coder, y * stretch)
        return -coder.y_likelihood.log2().sum(), self._error(y_hat / stretch)

    def _slope(self, y: Tensor) -> Tensor | None:
        """Return the bits that a unit of squared error is worth.

        None for the rare image, a flat one, where finer quantization takes fewer bits or does not reduce the error.
        """
        finer, coarser = self._rounded(y, STRETCH), self._rounded(y, 1 / STRETCH)
        bits, error = finer[0] - coarser[0], coarser[1] - finer[1]
        return bits / error if bits > 0 and error > 0 else None
