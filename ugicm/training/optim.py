"""Optimizers, learning-rate schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ugicm.config import OptimConfig
from ugicm.errors import ConfigError

QUANTILES = "quantiles"  # of CompressAI's EntropyBottleneck: trained by a loss and an optimizer of their own


def freeze(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Make the named submodules untrainable. Returns them: they belong in eval mode (see :func:`train_mode`)."""
    modules = dict(model.named_modules())
    frozen = []
    for name in names:
        if name not in modules or not name:
            parts = [n for n, _ in model.named_children()]
            raise ConfigError(f"freeze: the model has no submodule {name!r}; available: {', '.join(parts)}, ...")
        frozen.append(modules[name].requires_grad_(False))
    return frozen


def train_mode(model: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Training mode, except for frozen parts: a frozen parser then gives the y_hat that streams have."""
    model.train()
    for module in frozen:
        module.eval()


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Trainable parameters, without the quantiles, in groups of equal weight decay and learning-rate factor.

    Raises ConfigError where ``lr_scale`` names something that the model does not have.
    """
    children = {name for name, _ in model.named_modules() if name}
    for name in config.lr_scale:
        if name not in children:
            available = ", ".join(n for n, _ in model.named_children())
            raise ConfigError(f"optim.lr_scale: the model has no submodule {name!r}; available: {available}, ...")
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.endswith(QUANTILES):
            continue
        scales = [s for prefix, s in config.lr_scale.items() if name.startswith(prefix + ".")]
        plain = parameter.dim() < 2 or "bottleneck" in name or "gain" in name
        decay = 0.0 if plain else config.weight_decay
        groups.setdefault((math.prod(scales), decay), []).append(parameter)
    if not groups:
        raise ConfigError("freeze: nothing is left to train")
    return [
        {"params": parameters, "lr": config.lr * scale, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizers(
    model: nn.Module, config: OptimConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """(main optimizer, auxiliary optimizer of the quantiles: None where these are frozen)."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    optimizer = kind(parameter_groups(model, config), lr=config.lr, betas=tuple(config.betas), fused=True)
    quantiles = [p for name, p in model.named_parameters() if name.endswith(QUANTILES) and p.requires_grad]
    return optimizer, torch.optim.Adam(quantiles, lr=config.aux_lr) if quantiles else None


def learning_rate(config: OptimConfig, step: int) -> float:
    """The learning rate of step number ``step`` (from 0): linear warm-up, then the schedule over ``steps``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(step >= m for m in config.milestones)
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set ``lr`` times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


class Average:
    """Exponential moving average of a model's weights, held in a second model.

    The decay grows from 0 to ``decay`` as ``(1 + n) / (10 + n)``, so that the start is soon forgotten.
    """

    def __init__(self, average: nn.Module, source: nn.Module, decay: float):
        self.model, self.decay, self.updates = average, decay, 0
        trained = [n for n, p in source.named_parameters() if p.requires_grad]
        own, of = dict(average.named_parameters()), dict(source.named_parameters())
        self._own, self._source = [own[n].data for n in trained], [of[n].data for n in trained]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._own, self._source, 1 - decay)
