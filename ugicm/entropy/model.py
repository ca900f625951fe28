"""The entropy model and its one loop over slices.

The loop does not know the direction. It is handed a :class:`Coder`: estimating the rate
(:mod:`ugicm.entropy.likelihood`), encoding and decoding (:mod:`ugicm.entropy.coders`) are three coders behind one call.

Table rows come from one of two places. Where the model has integer ``indexes``, those of a whole slice follow from
z_hat and the residuals of earlier slices, so that one call of the entropy coder covers a slice. Otherwise each of the
two checkerboard passes predicts the scales of its symbols, together with their means.
"""

from __future__ import annotations

import contextlib
import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from ugicm.entropy.checkerboard import ANCHOR, NON_ANCHOR, Part, extent_mask, pack, unpack
from ugicm.entropy.factorized import FactorizedPrior
from ugicm.entropy.full_float32 import full_float32
from ugicm.entropy.gaussian import TabulatedGaussian
from ugicm.entropy.integer import prepare_integers


class Coder:
    """What the entropy model calls for every group of symbols.

    Attributes:
        residuals: rounded y - mean of the finished slices, each [B, C, H, W]; only with integer ``indexes``.
        energies: what ``indexes`` take of each of them.
        rows: table rows of the current slice [B, C, H, W], in floating point; None without integer ``indexes``.
    """

    def __init__(self, entropy_model: EntropyModel, extent: tuple[int, int] | None = None):
        self.entropy_model, self.extent = entropy_model, extent
        self.residuals: list[Tensor] = []
        self.energies: list[Tensor] = []
        self.rows: Tensor | None = None
        self._first: Tensor | None = None  # anchors' residuals of the current slice

    def code_hyper(self, z: Tensor | None) -> Tensor:
        """Code the hyper latent z [B, N, h, w] (None in decoding). Returns z_hat."""
        raise NotImplementedError

    def start_slice(self, k: int, hyper: Tensor) -> None:
        """Prepare for the two passes of slice k, given the hyper context."""
        if self.entropy_model.indexes is not None:
            self.rows = self.entropy_model.indexes(k, hyper, self.energies)

    def code(self, scale: Tensor | None, mean: Tensor, part: Part, y: Tensor | None) -> Tensor:
        """Code one part of one slice.

        ``scale`` (None with integer ``indexes``) and ``mean`` are packed, [B, C, H, W/2] ([B, C, H, W] for ``ALL``).
        ``y`` is the whole slice [B, C, H, W], or None in decoding. Returns y_hat on the part, packed.
        """
        raise NotImplementedError

    def _not_coded(self, part: Part, like: Tensor) -> Tensor:
        """Return which positions of a packed part are not in a bitstream, their residual being 0: bool, [B, C, h, w] or
        broadcastable to it. Those are the ones of table row 0, if rows are given, and those outside of the extent."""
        mask = like.new_zeros((), dtype=torch.bool) if self.rows is None else pack(self.rows, part) == 0
        if self.extent is None:
            return mask
        return mask | ~extent_mask(like.shape[2:], part, self.extent).to(like.device, non_blocking=True)

    def _keep(self, residual: Tensor, part: Part) -> None:
        """Remember the packed residuals of a part, for the indexes of later slices."""
        if self.rows is None:
            return
        full = unpack(residual.detach(), part)
        if part is ANCHOR:
            self._first = full
        else:
            self._finish_slice(self._first + full)

    def _finish_slice(self, residual: Tensor) -> None:
        self.residuals.append(residual)
        self.energies.append(self.entropy_model.indexes.energy(residual))


class SliceEntropyModel(nn.Module):
    """Code y in slices of channels, each in two checkerboard passes.

    A subclass defines the networks: ``anchor_params[k]`` and ``non_anchor_params[k]`` (pointwise, context -> scale |
    mean, or mean alone without ``context_scales``), :meth:`past_context` and :meth:`near_context`, and optionally
    latent residual prediction.
    """

    context_scales: ClassVar[bool] = True
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
            coder.start_slice(k, hyper)
            past = self.past_context(k, done)
            context = torch.cat([*(pack(c, ANCHOR) for c in past), hyper_on[ANCHOR]], dim=1)
            scale, mean = self._split(self.anchor_params[k](context))
            anchor = unpack(coder.code(scale, mean, ANCHOR, y_k), ANCHOR)
            anchor = self.predict_residual(k, ANCHOR, hyper, done, anchor)
            near = self.near_context(k, done, anchor)
            context = torch.cat([*near, *(pack(c, NON_ANCHOR) for c in past), hyper_on[NON_ANCHOR]], dim=1)
            scale, mean = self._split(self.non_anchor_params[k](context))
            y_hat = anchor + unpack(coder.code(scale, mean, NON_ANCHOR, y_k), NON_ANCHOR)
            done.append(self.predict_residual(k, NON_ANCHOR, hyper, done, y_hat))
        return torch.cat(done, dim=1)

    def _split(self, parameters: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return scale and mean."""
        return parameters.chunk(2, dim=1) if self.context_scales else (None, parameters)


class EntropyModel(nn.Module):
    """The part of the model that decides symbols and probabilities: all that is needed to decode y_hat.

    Analysis and synthesis transforms are not part of it. They may run in any precision on any device and never
    influence how a bitstream is decoded.

    Attributes:
        bottleneck: factorized prior of z.
        h_s: hyper synthesis; with ``indexes`` it gets z_hat less the medians.
        slices: context networks and the loop over slices.
        gaussian: tabulated scales of y.
        indexes: integer networks that give the table rows of slices; None where scales depend on context.
    """

    def __init__(
        self, bottleneck: FactorizedPrior, h_s: nn.Module, slices: nn.Module, gaussian: TabulatedGaussian,
        indexes: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.bottleneck = bottleneck
        self.h_s = h_s
        self.slices = slices
        self.gaussian = gaussian
        self.indexes = indexes
        self._on_cpu: list[EntropyModel] = []

    def round_hyper(self, z: Tensor) -> Tensor:
        """Return z as it is decoded: at integer distances from the medians. [B, N, H, W] -> same."""
        return torch.round(z - self.bottleneck.medians) + self.bottleneck.medians

    def hyper_context(self, z_hat: Tensor) -> Tensor:
        """Return the hyper context [B, C, H/16, W/16] of z_hat [B, N, H/64, W/64]."""
        return self.h_s(z_hat if self.indexes is None else z_hat - self.bottleneck.medians)

    def forward(self, coder: Coder, z: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Code z, then y given z (both None in decoding). Returns y_hat [B, M, H, W]."""
        if z is not None:  # in the decoder's memory format: another one would be rounded differently
            z = z.contiguous()
        with contextlib.nullcontext() if self.training else full_float32():
            return self.slices(self.hyper_context(coder.code_hyper(z)), coder, y)

    def on_cpu(self) -> EntropyModel:
        """Return this model if it is on the CPU, else a copy there, made once."""
        if self.bottleneck.quantiles.device.type == "cpu":
            return self
        if not self._on_cpu:
            self._on_cpu.append(copy.deepcopy(self).cpu())
        return self._on_cpu[0]

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
        """Round the weights of integer layers and fix the tables of the entropy coder.

        Raises CheckpointError for weights that are too large for exact sums.
        """
        prepare_integers(self)
        self.z_tables, self.y_tables = self.bottleneck.coding_tables(), self.gaussian.coding_tables()
