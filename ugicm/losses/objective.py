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

from ugicm.config import SEMANTIC_TERMS, ObjectiveConfig
from ugicm.errors import ConfigError, first_line
from ugicm.losses.distortion import PerceptualDistance, squared_error, structural_dissimilarity
from ugicm.losses.rate import bits_per_pixel, log_linear
from ugicm.losses.semantic import FeaturesTerm, GlobalTerm, InstanceTerm, LocalTerm, SemanticTerm
from ugicm.losses.teachers import load_teacher

GROUPS = ("human", "between", "machine", "low", "middle", "high")  # thirds of preference, thirds of quality


@dataclass
class Losses:
    """Of a batch. ``total``: sum of the samples' losses, a scalar to differentiate. ``balance``: the loss of the
    learned weights, to be added to it, where there are any. ``sums``: detached sums of each term over samples, all
    and by group ("mse", "mse/human"), with ``counts`` of samples."""

    total: Tensor
    balance: Tensor | None = None
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
    """The configured objective, with its teacher.

    Terms are called with the samples ``index`` of the batch (CPU, int64) that have a weight; see
    :mod:`ugicm.losses.semantic`. With ``balance: uncertainty`` each term t has a learned s_t (Kendall, Gal,
    Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018): s_t follows the gradient of
    exp(-s_t) L_t + s_t, and L_t gets the factor exp(s_1 - s_t), relative to the first term, so that lambda keeps its
    meaning. Weights are then shares of the balanced sum.

    Raises ConfigError or CheckpointError where a teacher, or LPIPS, cannot be had.
    """

    def __init__(self, config: ObjectiveConfig):
        super().__init__()
        self.config = config
        self.names = [name for name, term in config.terms.items() if term is not None]
        self.lpips = PerceptualDistance(config.lpips.net, config.lpips.backbone) if "lpips" in self.names else None
        semantic = any(name in SEMANTIC_TERMS for name in self.names)
        self.teacher = load_teacher(config.teacher) if semantic else None
        self._own_size = self.teacher.size if semantic else 0
        self._semantic = {name: self._semantic_term(name) for name in self.names if name in SEMANTIC_TERMS}
        balanced = config.balance == "uncertainty"
        self.log_scales = nn.Parameter(torch.zeros(len(self.names))) if balanced else None

    def _semantic_term(self, name: str) -> SemanticTerm:
        config, teacher = self.config, self.teacher
        if name == "global":
            return GlobalTerm(teacher)
        if name == "local":
            return LocalTerm(teacher, config.local_side)
        if name == "features":
            return FeaturesTerm(teacher, config.teacher.layers, config.features_distance)
        return InstanceTerm(teacher, teacher.size or teacher.own_size)

    @torch.no_grad()
    def check(self, side: int) -> None:
        """Try the networks on a gray image of ``side`` pixels, the teacher at all its sizes.

        Raises ConfigError where they cannot take it.
        """
        if self.lpips is not None:
            self._try("lpips", lambda gray: self.lpips(gray, gray), side)
        if self.teacher is not None:
            for size in (*self.config.teacher.sizes, self._own_size):
                self.teacher.size = size
                self._try("teacher", self.teacher, size or side)

    def _try(self, what: str, network: Callable[[Tensor], object], side: int) -> None:
        try:
            network(torch.full((1, 3, side, side), 0.5, device=next(getattr(self, what).parameters()).device))
        except (RuntimeError, AssertionError, ValueError) as error:
            text = f"objective.{what}: cannot take images of {side} pixels: {first_line(error)}"
            raise ConfigError(text) from None

    def weights(self, name: str, beta: Tensor, quality: Tensor) -> Tensor:
        """Weight of a term for samples of these preferences and qualities, [B] each, on the CPU."""
        term = self.config.terms[name]
        weight = (1 - beta) * term.human + beta * term.machine
        return weight * log_linear(self.config.lambdas, quality) if term.by_quality else weight

    def _teacher_size(self) -> int:
        """Side of the images that the teacher sees in this batch."""
        sizes = self.config.teacher.sizes
        if not self.training or not sizes:
            return self._own_size
        return sizes[int(torch.randint(len(sizes), ()))]

    def _values(self, name: str, x_hat: Tensor, x: Tensor, batch: dict, index: Tensor, memo: dict) -> Tensor:
        if name == "mse":
            return squared_error(x_hat, x)
        if name == "ms_ssim":
            return structural_dissimilarity(x_hat, x)
        if name == "lpips":
            return self.lpips(x_hat, x)
        return self._semantic[name](x_hat, x, batch, index, memo)

    def forward(self, out: dict, x: Tensor, batch: dict[str, Tensor]) -> Losses:
        """Losses of the model's output for images x [B, 3, H, W].

        ``batch`` holds "beta" and "quality" [B] on the CPU, "place" and instances where semantic terms need them.
        """
        beta, quality = batch["beta"], batch["quality"]
        groups, memo = group_members(beta, quality), {}
        if self.teacher is not None:
            self.teacher.size = self._teacher_size()
            self.teacher.vary(self.training)
        bpp = bits_per_pixel(out["likelihoods"].values(), x.shape[2] * x.shape[3])
        emphasis = torch.ones_like(quality)
        if self.training and self.config.emphasis:
            middle = log_linear(self.config.lambdas, torch.tensor([0.5]))
            emphasis = (log_linear(self.config.lambdas, quality) / middle) ** -self.config.emphasis
        losses = Losses(self.config.rate * (emphasis.to(bpp) * bpp).sum())
        losses.add("bpp", bpp, groups)
        for t, name in enumerate(self.names):
            weight = self.weights(name, beta, quality)
            index = weight.nonzero()[:, 0]
            if name in self._semantic:
                index = self._semantic[name].applies(batch, index)
            if not len(index):
                continue  # absent from this batch
            chosen_hat, chosen = out["x_hat"], x
            if len(index) < len(x):
                where = index.to(x.device)
                chosen_hat, chosen = chosen_hat.index_select(0, where), chosen.index_select(0, where)
            values = self._values(name, chosen_hat, chosen, batch, index, memo).float()
            weighted = ((weight * emphasis)[index].to(values) * values).sum()
            if self.log_scales is not None and self.training:  # validation compares steps: by fixed weights
                scales = self.log_scales.detach()
                weighted = weighted * (scales[0] - scales[t]).exp()
                own = self.log_scales[t]
                own_loss = (torch.exp(-own) * values.detach() + own).sum()
                losses.balance = own_loss if losses.balance is None else losses.balance + own_loss
            losses.total = losses.total + weighted
            losses.add(name, values, groups[index])
        return losses
