"""The objective: a rate and named, weighted terms, put together per sample.

loss_b = rate · bpp_b + sum over terms of w_term(beta_b) · lambda(quality_b) · term_b,
w(beta) = (1 - beta) · human + beta · machine.

The batch's loss is the mean over all its samples. With beta drawn from {0, 1} this is the paper's
``bpp + ½(λ·MSE(β=0 samples) + λ₁·MSE(β=1 samples) + λ_clip·C_global(β=1 samples))`` in expectation, but a
batch without any sample of one kind is no special case, and it does not depend on how a batch is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ugicm.config import ObjectiveConfig
from ugicm.errors import ConfigError
from ugicm.losses.distortion import squared_error
from ugicm.losses.rate import bits_per_pixel, log_linear

GROUPS = ("human", "between", "machine", "low", "middle", "high")  # thirds of preference, thirds of quality


@dataclass
class Losses:
    """``total``: sum of the samples' losses, a scalar to differentiate. ``sums``: detached sums of each term over
    samples, all and by group ("mse", "mse/human"), with ``counts`` of samples."""

    total: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, groups: Tensor) -> None:
        """Take in one term: values [n] and the group membership of the same samples [n, 6], on the CPU."""
        values = values.detach().float()
        self.sums[name], self.counts[name] = values.sum(), len(values)
        by_group = (groups.to(values) * values[:, None]).sum(0)
        for g, (label, count) in enumerate(zip(GROUPS, groups.sum(0).int().tolist())):
            if count:
                self.sums[f"{name}/{label}"], self.counts[f"{name}/{label}"] = by_group[g], count


def group_members(beta: Tensor, quality: Tensor) -> Tensor:
    """[n, 6] of 0 and 1: the thirds of preference and quality each sample falls into."""
    third = torch.stack([torch.clamp((v * 3).floor(), 0, 2) for v in (beta, quality)], 1)[:, :, None]
    return (third == torch.arange(3)).flatten(1).float()


class Objective(nn.Module):
    """Configured objective. ``terms`` maps names to callables (x_hat, x, batch, index) -> [n], where x_hat and x
    are already restricted to the samples ``index`` (CPU, int64) that have a weight."""

    def __init__(self, config: ObjectiveConfig):
        super().__init__()
        self.config = config
        self.terms: dict[str, Callable] = {}
        available = {"mse": lambda x_hat, x, batch, index: squared_error(x_hat, x)}
        for name, term in config.terms.items():
            if term is None:
                continue
            if name not in available:
                raise ConfigError(f"objective.terms: {name!r} not found; available: {', '.join(available)}")
            self.terms[name] = available[name]

    def weights(self, name: str, beta: Tensor, quality: Tensor) -> Tensor:
        """Weight of a term for samples of these preferences and qualities, [B] each, on the CPU."""
        term = self.config.terms[name]
        weight = (1 - beta) * term.human + beta * term.machine
        return weight * log_linear(self.config.lambdas, quality) if term.by_quality else weight

    def forward(self, out: dict, x: Tensor, batch: dict[str, Tensor]) -> Losses:
        """The model's output for pictures x [B, 3, H, W]; ``batch`` holds "beta" and "quality" [B] on the CPU."""
        beta, quality = batch["beta"], batch["quality"]
        groups = group_members(beta, quality)
        bpp = bits_per_pixel(out["likelihoods"].values(), x.shape[2] * x.shape[3])
        per_sample = self.config.rate * bpp
        losses = Losses(per_sample.sum())
        losses.add("bpp", bpp, groups)
        for name, term in self.terms.items():
            weight = self.weights(name, beta, quality)
            index = weight.nonzero()[:, 0]
            if not len(index):
                continue
            everything = len(index) == len(x)
            where = None if everything else index.to(x.device)
            chosen_hat, chosen = (v if everything else v.index_select(0, where) for v in (out["x_hat"], x))
            values = term(chosen_hat, chosen, batch, index).float()
            weighted = weight[index].to(values) * values
            losses.total = losses.total + weighted.sum()
            losses.add(name, values, groups[index])
        return losses
