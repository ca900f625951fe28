"""The training objective: rate plus weighted distortion and semantic terms, computed per sample.

The loss of sample b with preference beta_b and quality q_b is::

    loss_b = bpp_b + lambda(q_b) * sum_t w_t(beta_b) * term_tb
    w_t(beta) = (1 - beta) * human_t + beta * machine_t

With beta drawn from {0, 1} its expectation is UG-ICM's ``bpp + (lambda * MSE(beta=0) + lambda_1 * MSE(beta=1) +
lambda_clip * C_global(beta=1)) / 2``. The sum over samples does not depend on how a batch is divided among
accumulation steps or processes, and a term without samples in a batch contributes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ugicm.config import SEMANTIC_TERMS, ObjectiveConfig, TeacherConfig
from ugicm.errors import ConfigError, first_line
from ugicm.losses.distortion import squared_error, structural_dissimilarity
from ugicm.losses.rate import bits_per_pixel, log_linear
from ugicm.losses.semantic import FeaturesTerm, GlobalTerm, InstanceTerm, LocalTerm, SemanticTerm
from ugicm.losses.teachers import Teacher, load_teacher

DISTORTION_TERMS = {"mse": squared_error, "ms_ssim": structural_dissimilarity}
GROUPS = ("human", "between", "machine", "low", "middle", "high")  # thirds of preference, thirds of quality


@dataclass
class Losses:
    """Losses of one batch.

    Attributes:
        total: sum of the samples' losses, a scalar to differentiate.
        sums: detached sum of each term over its samples, in total ("mse") and by group ("mse/human").
        counts: number of samples in each sum.
    """

    total: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, groups: Tensor) -> None:
        """Add a term's values [n]; ``groups`` is the group membership [n, 6] of its samples, on the CPU."""
        values = values.detach().float()
        self.sums[name], self.counts[name] = values.sum(), len(values)
        by_group = (groups.to(values) * values[:, None]).sum(0)
        for g, (label, count) in enumerate(zip(GROUPS, groups.sum(0).int().tolist())):
            if count:
                self.sums[f"{name}/{label}"], self.counts[f"{name}/{label}"] = by_group[g], count


def group_members(beta: Tensor, quality: Tensor) -> Tensor:
    """Return 0 or 1 for every sample and group [n, 6]: the thirds of preference and quality the sample falls into."""
    third = torch.stack([torch.clamp((v * 3).floor(), 0, 2) for v in (beta, quality)], 1)[:, :, None]
    return (third == torch.arange(3)).flatten(1).float()


@dataclass
class _Supervision:
    """A teacher and the semantic terms that use it."""

    config: TeacherConfig
    teacher: Teacher
    terms: dict[str, SemanticTerm]
    default_size: int

    def prepare(self, training: bool) -> None:
        """Draw the teacher's input size and jitter of this batch; outside of training use its own."""
        sizes = self.config.sizes if training else ()
        self.teacher.size = sizes[int(torch.randint(len(sizes), ()))] if sizes else self.default_size
        self.teacher.draw_jitter(training)


class Objective(nn.Module):
    """The configured objective and its teachers.

    In training, semantic terms are those of one teacher, drawn for each batch. In eval mode they are the means over all
    teachers.

    Raises ConfigError if a teacher cannot be loaded.
    """

    def __init__(self, config: ObjectiveConfig):
        super().__init__()
        self.config = config
        self.names = [name for name, term in config.terms.items() if term is not None]
        semantic = [name for name in self.names if name in SEMANTIC_TERMS]
        self.teachers = nn.ModuleDict()
        self._supervisions: list[_Supervision] = []
        for key, teacher_config in config.teachers.items() if semantic else ():
            self.teachers[key] = teacher = load_teacher(teacher_config)
            terms = {name: self._semantic_term(name, teacher, teacher_config) for name in semantic}
            self._supervisions.append(_Supervision(teacher_config, teacher, terms, teacher.size))

    def _semantic_term(self, name: str, teacher: Teacher, config: TeacherConfig) -> SemanticTerm:
        if name == "global":
            return GlobalTerm(teacher)
        if name == "local":
            return LocalTerm(teacher, self.config.local_side)
        if name == "features":
            return FeaturesTerm(teacher, config.layers)
        return InstanceTerm(teacher, teacher.size or teacher.native_size)

    @torch.no_grad()
    def check(self, side: int) -> None:
        """Run the teachers at all their sizes on a gray image of ``side`` pixels.

        Raises ConfigError if one does not accept images of a size.
        """
        for (key, teacher), supervision in zip(self.teachers.items(), self._supervisions):
            for size in (*supervision.config.sizes, supervision.default_size):
                teacher.size = size
                try:
                    teacher(torch.full((1, 3, side, side), 0.5, device=teacher.mean.device))
                except (RuntimeError, AssertionError, ValueError) as error:
                    raise ConfigError(
                        f"objective.teachers.{key}: cannot take images of {size or side} pixels: {first_line(error)}"
                    ) from None

    def term_weights(self, name: str, beta: Tensor, quality: Tensor) -> Tensor:
        """Return a term's weight for samples of these preferences and qualities, [B] each, on the CPU."""
        term = self.config.terms[name]
        return ((1 - beta) * term.human + beta * term.machine) * log_linear(self.config.lambdas, quality)

    def _emphasis(self, quality: Tensor) -> Tensor:
        """Return the factor of each sample's loss [B]: (lambda(quality) / lambda(0.5)) ** -emphasis in training."""
        if not self.training or not self.config.emphasis:
            return torch.ones_like(quality)
        middle = log_linear(self.config.lambdas, torch.tensor([0.5]))
        return (log_linear(self.config.lambdas, quality) / middle) ** -self.config.emphasis

    def _supervise(self) -> list[_Supervision]:
        """Return the teachers of this batch, prepared for it."""
        chosen = self._supervisions
        if self.training and chosen:
            chosen = [chosen[int(torch.randint(len(chosen), ()))]]
        for supervision in chosen:
            supervision.prepare(self.training)
        return chosen

    def forward(self, out: dict, x: Tensor, batch: dict[str, Tensor]) -> Losses:
        """Return the losses of the model's output ``out`` for images x [B, 3, H, W] in [0, 1].

        ``batch`` holds "beta" and "quality" [B] on the CPU, and "place" and instances for the semantic terms that use
        them (see :mod:`ugicm.losses.semantic`).
        """
        beta, quality = batch["beta"], batch["quality"]
        groups = group_members(beta, quality)
        supervisions = [(supervision, {}) for supervision in self._supervise()]
        emphasis = self._emphasis(quality)
        bpp = bits_per_pixel(out["likelihoods"].values(), x.shape[2] * x.shape[3])
        losses = Losses((emphasis.to(bpp) * bpp).sum())
        losses.add("bpp", bpp, groups)
        for name in self.names:
            weight = self.term_weights(name, beta, quality)
            index = weight.nonzero()[:, 0]
            if name in SEMANTIC_TERMS:
                index = supervisions[0][0].terms[name].select(batch, index)
            if not len(index):
                continue
            x_hat, target = out["x_hat"], x
            if len(index) < len(x):
                on_device = index.to(x.device)
                x_hat, target = x_hat.index_select(0, on_device), target.index_select(0, on_device)
            if name in SEMANTIC_TERMS:
                of_each = [
                    one.config.weight * one.terms[name](x_hat, target, batch, index, memo).float()
                    for one, memo in supervisions
                ]
                values = torch.stack(of_each).mean(0)
            else:
                with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for MS-SSIM's variances
                    values = DISTORTION_TERMS[name](x_hat.float(), target)
            losses.total = losses.total + ((weight * emphasis)[index].to(values) * values).sum()
            losses.add(name, values, groups[index])
        return losses
