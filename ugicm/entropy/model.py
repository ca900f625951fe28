"""Everything that decides how a stream is parsed, and the one loop over slices that does it.

The loop does not know the direction. It is handed a *coder* (:mod:`ugicm.entropy.rans`): estimating a rate,
writing a stream and reading one are three coders behind the same call.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from ugicm.entropy.checkerboard import ALL, ANCHOR, REST, Part, pack, unpack
from ugicm.entropy.factorized import EntropyBottleneck
from ugicm.entropy.fixed_point import FixedPointConv2d
from ugicm.entropy.full_float32 import full_float32
from ugicm.entropy.gaussian import TabulatedGaussian

TABLES = ("_offset", "_quantized_cdf", "_cdf_length")  # buffers of CompressAI's entropy models


class Coder(Protocol):
    """What the entropy model needs from whoever estimates, writes or reads symbols."""

    def code_hyper(self, z: Tensor | None) -> Tensor:
        """Hyper latent z [B, N, h, w], or None when reading -> z_hat."""

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: Tensor | None) -> Tensor:
        """Code one part of one slice.

        ``scale`` and ``mean`` are packed, [B, C, H, W/2] ([B, C, H, W] for ``ALL``); ``y`` is the whole slice
        [B, C, H, W], or None when reading. Returns y_hat on the part, packed, and in memory in
        the order of ``mean``: another one would be rounded differently by what follows, and all coders must agree.
        """


class SliceEntropyModel(nn.Module):
    """y in slices of channels, each in two checkerboard passes.

    A subclass gives the networks: ``anchor_params[k]`` and ``rest_params[k]`` (pointwise, known -> scale | mean),
    :meth:`past_context` and :meth:`near_context`, and optionally latent residual prediction.
    """

    anchor_params: nn.ModuleList
    rest_params: nn.ModuleList

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.widths = widths

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        """From the finished slices; each [B, C, H, W]. Empty for the first slice."""
        raise NotImplementedError

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        """From this slice's anchors and the finished slices, packed on the rest; each [B, C, H, W/2]."""
        raise NotImplementedError

    def predict_residual(self, k: int, part: Part, hyper: Tensor, done: list[Tensor], y_hat: Tensor) -> Tensor:
        """``y_hat`` with its rounding error on ``part`` predicted and added. By default nothing is predicted."""
        return y_hat

    def forward(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor:
        """hyper context [B, C, H, W] and y [B, M, H, W] (None when reading) -> y_hat [B, M, H, W]."""
        slices = [None] * len(self.widths) if y is None else y.split(self.widths, dim=1)
        done: list[Tensor] = []
        hyper_on = {part: pack(hyper, part) for part in (ANCHOR, REST)}
        for k, y_k in enumerate(slices):
            past = self.past_context(k, done)
            known = torch.cat([*(pack(c, ANCHOR) for c in past), hyper_on[ANCHOR]], dim=1)
            scale, mean = self.anchor_params[k](known).chunk(2, dim=1)
            anchor = unpack(coder.code(scale, mean, ANCHOR, y_k), ANCHOR)
            anchor = self.predict_residual(k, ANCHOR, hyper, done, anchor)
            near = self.near_context(k, done, anchor)
            known = torch.cat([*near, *(pack(c, REST) for c in past), hyper_on[REST]], dim=1)
            scale, mean = self.rest_params[k](known).chunk(2, dim=1)
            y_hat = anchor + unpack(coder.code(scale, mean, REST, y_k), REST)
            done.append(self.predict_residual(k, REST, hyper, done, y_hat))
        return torch.cat(done, dim=1)


class HyperpriorEntropyModel(nn.Module):
    """Mean-scale hyperprior (Minnen, Ballé, Toderici, NeurIPS 2018) without a context: one pass over y."""

    def forward(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor:
        scale, mean = hyper.chunk(2, dim=1)
        return coder.code(scale, mean, ALL, y)


class Parser(nn.Module):
    """The part of the model that decides symbols and probabilities: all a reader needs to get y_hat.

    Analysis and synthesis stay outside: they may run in any precision, on any device, and never influence how a
    stream is read. Attributes: ``bottleneck`` (factorized prior of z), ``h_s`` (hyper-synthesis), ``slices`` and
    ``gaussian`` (tabulated scales). ``guard``: how far, relatively, a scale may be off on another machine (see
    :mod:`ugicm.entropy.rans`); 0 where parsing is exact.
    """

    def __init__(
        self,
        bottleneck: EntropyBottleneck,
        h_s: nn.Module,
        slices: nn.Module,
        gaussian: TabulatedGaussian,
        guard: float = 0.0,
    ):
        super().__init__()
        self.guard = guard
        self.bottleneck = bottleneck
        self.h_s = h_s
        self.slices = slices
        self.gaussian = gaussian

    @property
    def dtype(self) -> torch.dtype:
        return self.bottleneck.quantiles.dtype

    @property
    def medians(self) -> Tensor:
        """Of z's factorized prior, [1, N, 1, 1]: what z is rounded relative to."""
        return self.bottleneck.quantiles[:, :, 1:2].detach().reshape(1, -1, 1, 1)

    def round_hyper(self, z: Tensor) -> Tensor:
        """z as a reader will see it: integers away from the medians. [B, N, H, W] -> same."""
        return torch.round(z - self.medians) + self.medians

    def forward(self, coder: Coder, z: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Code z, then y given z (both None when reading). Returns y_hat [B, M, H, W] in the parser's dtype."""
        if y is not None:  # z as a reader will have it, in memory too: another order would be rounded differently
            z, y = z.to(self.dtype).contiguous(), y.to(self.dtype)
        exact = self.dtype == torch.float32 and not self.training
        with full_float32() if exact else contextlib.nullcontext():
            return self.slices(self.h_s(coder.code_hyper(z)), coder, y)

    def build_tables(self) -> None:
        """Build the integer CDF tables where there are none yet; existing ones are never touched.

        In float64, so that models of the same parameters get the same tables on every machine.
        """
        if self.gaussian.quantized_cdf.numel() == 0:
            self.gaussian.update()
        if self.bottleneck.quantized_cdf.numel() == 0:
            double = copy.deepcopy(self.bottleneck).double()
            double.update()
            for name in TABLES:
                setattr(self.bottleneck, name, getattr(double, name))

    def drop_tables(self) -> None:
        """Forget the CDF tables, for priors that are about to change; they are built anew where needed."""
        for prior in (self.bottleneck, self.gaussian):
            for name in TABLES:
                setattr(prior, name, torch.IntTensor())

    def prepare_for_coding(self, dtype: torch.dtype) -> None:
        """Switch to the arithmetic of streams: ``dtype``, with fixed-point layers on their grids."""
        self.gaussian.prepare_for_coding()
        self.to(dtype)
        for module in self.modules():
            if isinstance(module, FixedPointConv2d):
                module.round_weights()
