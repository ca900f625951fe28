"""The coder that estimates the rate: likelihoods of symbols instead of bits."""

from __future__ import annotations

import torch
from torch import Tensor

from ugicm.entropy.checkerboard import Part, pack, unpack
from ugicm.entropy.model import Coder, EntropyModel


def add_noise(x: Tensor) -> Tensor:
    """Add uniform noise from [-1/2, 1/2): the differentiable substitute for rounding."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def straight_through_round(x: Tensor) -> Tensor:
    """Round to integers; the gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()


class LikelihoodCoder(Coder):
    """Collect likelihoods and write nothing.

    In training it follows Minnen & Singh (ICIP 2020): the rate sees y with uniform noise, the rest of the network sees
    y rounded with a straight-through gradient. z is noisy for both: if it were rounded, its small initial values would
    all be zero, and the hyperprior would not learn. In eval mode, likelihoods are those of the coded symbols.

    ``extent`` is described in :mod:`ugicm.entropy.coders`.
    """

    def __init__(self, entropy_model: EntropyModel, extent: tuple[int, int] | None = None):
        super().__init__(entropy_model, extent)
        self.z_likelihood: Tensor | None = None
        self._parts: list[tuple[Tensor, Part]] = []

    def code_hyper(self, z: Tensor) -> Tensor:
        bottleneck = self.entropy_model.bottleneck
        z_hat = add_noise(z) if bottleneck.training else self.entropy_model.round_hyper(z)
        self.z_likelihood = bottleneck.likelihood(z_hat)
        return z_hat

    def code(self, scale: Tensor | None, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        gaussian = self.entropy_model.gaussian
        y = pack(y, part)
        residual = straight_through_round(y - mean)
        if scale is None:
            scale = gaussian.scale_of(pack(self.rows, part))
        if gaussian.training:
            likelihood = gaussian.likelihood(add_noise(y) - mean, scale)
        else:
            not_coded = self._not_coded(part, mean)
            residual = residual.masked_fill(not_coded, 0)
            likelihood = gaussian.likelihood(residual, scale).masked_fill(not_coded, 1)
        self._parts.append((likelihood, part))
        self._keep(residual, part)
        return mean + residual

    @property
    def y_likelihood(self) -> Tensor:
        """Likelihoods of all coded slices, [B, M, H, W], in the order of y's channels."""
        slices, anchors = [], None
        for likelihood, part in self._parts:
            full = unpack(likelihood, part)
            if part is Part.ANCHOR:
                anchors = full
            else:
                slices.append(full if anchors is None else anchors + full)
                anchors = None
        return torch.cat(slices, dim=1)
