"""Adapt the latents of one image to it before they are written: fewer bits for the same quality, for more time.

The analysis transform is good for images in general. For one image, rate + slope * distortion can be lowered
further by gradient descent on y itself, through the entropy model and the synthesis, which stay as they are: every
reader reads the result, in the same time (Campos, Meierhans, Djelouah, Schroers, "Content Adaptive Optimization for
Neural Image Compression", CVPR workshops 2019). Rounding is relaxed to something with a gradient that becomes rounding
towards the end (after Yang, Bamler, Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020, without
its noise).

The distortion is that of the image for people. How much of it a bit is worth, the slope, is read off the model: it is
what a little more or less precision of y changes in both.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor
from tqdm import tqdm

from ugicm.bitstream import inside_of
from ugicm.entropy.checkerboard import Part, pack
from ugicm.entropy.model import Parser
from ugicm.entropy.rans import LikelihoodCoder, left_out
from ugicm.losses.rate import bits_per_pixel
from ugicm.models.ugicm import UGICM
from ugicm.tiling import Y_STRIDE, Z_STRIDE, Box, cut

WINDOW = 768  # side in pixels of what is refined at a time; memory grows with the square of it and the halo around
SOFT, HARD = 0.1, 0.01  # width of the relaxed rounding step, in symbols, at the beginning and the end
RATE = 7e-3  # of learning, in symbols a step; falls to a tenth
CALM = 0.2  # bits a symbol: weaker gradients move their symbol by less than RATE
STRETCH = 1.2  # of y, either way, for the slope


class RelaxedCoder:
    """A coder (:class:`ugicm.entropy.model.Coder`) whose symbols lie between integers, ever more rarely.

    A residual f between the integers n and n + 1 becomes n + w, with w = sigmoid((f - n - 1/2) / softness), and costs
    what n and n + 1 cost in these shares: the bits of the values in between, which no stream can hold, say nothing.
    ``bits`` is the sum over y, differentiable. ``z_hat`` is given.
    """

    def __init__(self, parser: Parser, z_hat: Tensor, softness: float, inside: tuple[int, int] | None):
        self.gaussian, self.z_hat, self.softness, self.inside = parser.gaussian, z_hat, softness, inside
        self.bits = z_hat.new_zeros(())

    def code_hyper(self, z: None = None) -> Tensor:
        return self.z_hat

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        residual = pack(y, part) - mean
        below = residual.detach().floor()
        share = torch.sigmoid((residual - below - 0.5) / self.softness)
        bits = torch.lerp(self._bits(below, scale), self._bits(below + 1, scale), share)
        uncoded = left_out(self.gaussian, self.gaussian.build_indexes(scale.detach()), part, self.inside)
        self.bits = self.bits + bits.masked_fill(uncoded, 0).sum()
        return mean + (below + share).masked_fill(uncoded, 0)

    def _bits(self, symbols: Tensor, scale: Tensor) -> Tensor:
        return -self.gaussian.probability(symbols, scale).log2()


def refine(
    model: UGICM, x: Tensor, y: Tensor, z: Tensor, quality: Tensor | None, steps: int,
    size: tuple[int, int], progress: bool = False,
) -> Tensor:  # fmt: skip
    """Latents that cost less than ``y`` for what they show. [1, M, H/16, W/16] -> same; z stays as it is.

    x [1, 3, H, W] in [0, 1] is the image of ``size`` (width, height), padded; z [1, N, H/64, W/64] its hyper latent,
    ``quality`` [1] in [0, 1] (None for a model of one rate). ``steps``: of descent, each taking as long as two or three
    decodings. ``progress``: show a bar.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if any(parameter.is_inference() for parameter in model.parameters()):
            model = copy.deepcopy(model)  # unpickled or copied in inference mode: gradients do not pass such tensors
        parser = copy.deepcopy(model.parser).float()
        x, y, z = x.clone(), y.clone(), z.float().clone()
        quality = None if quality is None else quality.clone()
        z_hat = parser.round_hyper(z)
        padded = Box(0, 0, x.shape[3], x.shape[2])
        windows = list(cut(padded, WINDOW))
        refined = y.clone()
        with tqdm(total=steps * len(windows), desc="refining", unit="step", leave=False,
                  disable=None if progress and sys.stderr else True) as bar:  # fmt: skip
            for window in windows:
                around = window.grown(model.config.halo, padded).aligned(Z_STRIDE)
                seen = x[..., *around.grown(0, Box(0, 0, *size)).slices()].to(y.device)
                here = z_hat[..., *around.slices(Z_STRIDE)]
                problem = _Problem(model, parser, seen, here, quality, inside_of(around, *size))
                better = problem.solve(y[..., *around.slices(Y_STRIDE)], steps, bar)
                refined[..., *window.slices(Y_STRIDE)] = better[..., *window.within(around).slices(Y_STRIDE)]
        return refined


class _Problem:
    """One window: y -> bits and squared error of what a reader would see. x is without padding."""

    def __init__(
        self, model: UGICM, parser: Parser, x: Tensor, z_hat: Tensor, quality: Tensor | None,
        inside: tuple[int, int] | None,
    ):  # fmt: skip
        self.model, self.parser, self.x, self.z_hat = model, parser, x, z_hat
        self.quality, self.inside = quality, inside
        self.people = torch.zeros(1)
        with torch.no_grad():
            self.hyper = parser.h_s(z_hat)

    def solve(self, start: Tensor, steps: int, bar: tqdm) -> Tensor:
        """Descend from ``start``; never to a worse place, as the coder would round it, and nowhere where nothing is to
        be had for bits."""
        with torch.no_grad():
            slope = self._slope(start)
            before = self._rounded(start)
        if slope is None:
            bar.update(steps)
            return start
        y = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([y], lr=RATE, betas=(0.9, 0.99), eps=CALM)
        for step in range(steps):
            done = step / max(1, steps - 1)
            optimizer.param_groups[0]["lr"] = RATE * (1 - 0.9 * done)
            coder = RelaxedCoder(self.parser, self.z_hat, SOFT * (HARD / SOFT) ** done, self.inside)
            error = self._error(self.parser.slices(self.hyper, coder, y))
            optimizer.zero_grad()
            (coder.bits + slope * error).backward()
            optimizer.step()
            bar.update()
        y = y.detach()
        with torch.no_grad():
            bits, error = self._rounded(y)
        return y if bits + slope * error < before[0] + slope * before[1] else start

    def _error(self, y_hat: Tensor) -> Tensor:
        x_hat = self.model.synthesize(y_hat, self.people, self.quality)
        return (x_hat[..., : self.x.shape[2], : self.x.shape[3]] - self.x).square().sum()

    def _rounded(self, y: Tensor, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        """Bits and squared error of y, coded as ``stretch`` times itself."""
        coder = LikelihoodCoder(self.parser, self.inside)
        y_hat = self.parser.slices(self.hyper, coder, y * stretch)
        return bits_per_pixel([coder.y_likelihood], 1)[0], self._error(y_hat / stretch)

    def _slope(self, y: Tensor) -> Tensor | None:
        """Bits that a unit of squared error is worth where the model stands. None on the rare image, a flat one,
        where finer steps take fewer bits or show less."""
        finer, coarser = self._rounded(y, STRETCH), self._rounded(y, 1 / STRETCH)
        bits, error = finer[0] - coarser[0], coarser[1] - finer[1]
        return bits / error if bits > 0 and error > 0 else None
