"""The entropy model and its one loop over slices.

The loop does not know the direction. It is handed a :class:`Coder`: estimating the rate
(:mod:`ugicm.entropy.likelihood`), encoding and decoding (:mod:`ugicm.entropy.rans`) are three coders behind one call.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import Tensor, nn

from ugicm.entropy.checkerboard import ANCHOR, NON_ANCHOR, Part, pack, unpack
from ugicm.entropy.factorized import FactorizedPrior
from ugicm.entropy.fixed_point import FixedPointConv2d
from ugicm.entropy.full_float32 import full_float32
from ugicm.entropy.gaussian import TabulatedGaussian
from ugicm.entropy.guard import GUARD


class Coder(Protocol):
    """What the entropy model calls for every group of symbols."""

    def code_hyper(self, z: Tensor | None) -> Tensor:
        """Code the hyper latent z [B, N, h, w] (None in decoding). Returns z_hat."""

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: Tensor | None) -> Tensor:
        """Code one part of one slice.

        ``scale`` and ``mean`` are packed, [B, C, H, W/2] ([B, C, H, W] for ``ALL``). ``y`` is the whole slice
        [B, C, H, W], or None in decoding. Returns y_hat on the part, packed, in the memory format of ``mean``: what
        follows would round another one differently, and all coders must agree.
        """


class SliceEntropyModel(nn.Module):
    """Code y in slices of channels, each in two checkerboard passes.

    A subclass defines the networks: ``anchor_params[k]`` and ``non_anchor_params[k]`` (pointwise, context -> scale |
    mean), :meth:`past_context` and :meth:`near_context`, and optionally latent residual prediction.
    """

    anchor_params: nn.ModuleList
    non_anchor_params: nn.ModuleList

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.widths = widths

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        """Return contexts from the finished slices, each [B, C, H, W]. Empty for the first slice."""
        raise NotImplementedError

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        """Return contexts from the finished slices and this slice's anchors, packed on the non-anchors.

        Each is [B, C, H, W/2].
        """
        raise NotImplementedError

    def predict_residual(self, k: int, part: Part, hyper: Tensor, done: list[Tensor], y_hat: Tensor) -> Tensor:
        """Return ``y_hat`` with its predicted rounding error on ``part`` added. By default nothing is predicted."""
        return y_hat

    def forward(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor:
        """Code y [B, M, H, W] (None in decoding) given the hyper context [B, C, H, W]. Returns y_hat [B, M, H, W]."""
        slices = [None] * len(self.widths) if y is None else y.split(self.widths, dim=1)
        done: list[Tensor] = []
        hyper_on = {part: pack(hyper, part) for part in (ANCHOR, NON_ANCHOR)}
        for k, y_k in enumerate(slices):
            past = self.past_context(k, done)
            context = torch.cat([*(pack(c, ANCHOR) for c in past), hyper_on[ANCHOR]], dim=1)
            scale, mean = self.anchor_params[k](context).chunk(2, dim=1)
            anchor = unpack(coder.code(scale, mean, ANCHOR, y_k), ANCHOR)
            anchor = self.predict_residual(k, ANCHOR, hyper, done, anchor)
            near = self.near_context(k, done, anchor)
            context = torch.cat([*near, *(pack(c, NON_ANCHOR) for c in past), hyper_on[NON_ANCHOR]], dim=1)
            scale, mean = self.non_anchor_params[k](context).chunk(2, dim=1)
            y_hat = anchor + unpack(coder.code(scale, mean, NON_ANCHOR, y_k), NON_ANCHOR)
            done.append(self.predict_residual(k, NON_ANCHOR, hyper, done, y_hat))
        return torch.cat(done, dim=1)


class EntropyModel(nn.Module):
    """The part of the model that decides symbols and probabilities: all that is needed to decode y_hat.

    Analysis and synthesis transforms are not part of it. They may run in any precision on any device and never
    influence how a bitstream is decoded.

    Attributes:
        bottleneck: factorized prior of z.
        h_s: hyper synthesis.
        slices: context networks and the loop over slices.
        gaussian: tabulated scales of y.
        guard: relative error of scales on another machine (see :mod:`ugicm.entropy.guard`); 0 in fixed point.
    """

    def __init__(
        self, bottleneck: FactorizedPrior, h_s: nn.Module, slices: nn.Module, gaussian: TabulatedGaussian
    ):
        super().__init__()
        self.bottleneck = bottleneck
        self.h_s = h_s
        self.slices = slices
        self.gaussian = gaussian
        self.guard = 0.0 if self._fixed_point_layers() else GUARD

    @property
    def dtype(self) -> torch.dtype:
        return self.bottleneck.quantiles.dtype

    def round_hyper(self, z: Tensor) -> Tensor:
        """Return z as it is decoded: at integer distances from the medians. [B, N, H, W] -> same."""
        return torch.round(z - self.bottleneck.medians) + self.bottleneck.medians

    def forward(self, coder: Coder, z: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Code z, then y given z (both None in decoding). Returns y_hat [B, M, H, W] in :attr:`dtype`."""
        if y is not None:  # z in the decoder's memory format: another one would be rounded differently
            z, y = z.to(self.dtype).contiguous(), y.to(self.dtype)
        exact = self.dtype == torch.float32 and not self.training
        with full_float32() if exact else contextlib.nullcontext():
            return self.slices(self.h_s(coder.code_hyper(z)), coder, y)

    def build_tables(self) -> None:
        """Build the integer CDF tables that do not exist yet. Existing ones are never changed."""
        for prior in (self.gaussian, self.bottleneck):
            if not prior.has_tables:
                prior.build_tables()

    def drop_tables(self) -> None:
        """Remove the CDF tables, for priors that are about to change. They are built again where needed."""
        for prior in (self.gaussian, self.bottleneck):
            prior.drop_tables()

    def prepare_for_coding(self) -> None:
        """Switch to the arithmetic of bitstreams: fixed point (in float64) or float32."""
        fixed_point = self._fixed_point_layers()
        self.to(torch.float64 if fixed_point else torch.float32)
        for layer in fixed_point:
            layer.round_weights()

    def _fixed_point_layers(self) -> list[FixedPointConv2d]:
        return [module for module in self.modules() if isinstance(module, FixedPointConv2d)]
