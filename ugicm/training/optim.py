"""Optimizers, learning-rate schedules and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ugicm.config import OptimConfig
from ugicm.errors import ConfigError
from ugicm.training.muon import MuonAdamW

QUANTILES = "quantiles"  # of the factorized prior, with a loss and an optimizer of their own
QUANTILES_LR = 1e-3


def freeze(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Exclude the named submodules from training and return them, for :func:`train_mode`.

    Raises ConfigError if the model has no submodule of a name.
    """
    modules = dict(model.named_modules())
    frozen = []
    for name in names:
        if name not in modules or not name:
            raise ConfigError(f"freeze: {_no_submodule(model, name)}")
        frozen.append(modules[name].requires_grad_(False))
    return frozen


def train_mode(model: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Set training mode, but eval mode for frozen submodules: a frozen entropy model then gives the decoder's y_hat."""
    model.train()
    for module in frozen:
        module.eval()


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Return the trainable parameters except the quantiles, grouped by weight decay and learning-rate factor.

    Raises ConfigError if ``lr_scale`` names a submodule that the model does not have, or nothing is trainable.
    """
    submodules = {name for name, _ in model.named_modules() if name}
    for name in config.lr_scale:
        if name not in submodules:
            raise ConfigError(f"optim.lr_scale: {_no_submodule(model, name)}")
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.endswith(QUANTILES):
            continue
        scales = [s for prefix, s in config.lr_scale.items() if name.startswith(prefix + ".")]
        no_decay = parameter.dim() < 2 or "bottleneck" in name or "gain" in name
        decay = 0.0 if no_decay else config.weight_decay
        groups.setdefault((math.prod(scales), decay), []).append(parameter)
    if not groups:
        raise ConfigError("freeze: nothing is left to train; remove a submodule")
    return [
        {"params": parameters, "lr": config.lr * scale, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizers(
    model: nn.Module, config: OptimConfig
) -> tuple[torch.optim.Optimizer | MuonAdamW, torch.optim.Optimizer | None]:
    """Return the main optimizer and that of the quantiles, which is None if they are frozen."""
    groups, betas = parameter_groups(model, config), tuple(config.betas)
    if config.name == "muon":
        optimizer = MuonAdamW(groups, betas)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
        optimizer = kind(groups, lr=config.lr, betas=betas, fused=True)
    quantiles = [p for name, p in model.named_parameters() if name.endswith(QUANTILES) and p.requires_grad]
    return optimizer, torch.optim.Adam(quantiles, lr=QUANTILES_LR) if quantiles else None


def _no_submodule(model: nn.Module, name: str) -> str:
    available = ", ".join(n for n, _ in model.named_children())
    return f"the model has no submodule {name!r}; available: {available}, ..."


def learning_rate(config: OptimConfig, step: int) -> float:
    """Return the learning rate of step ``step`` (from 0): linear warm-up, then the schedule."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(step >= m for m in config.milestones)
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer | MuonAdamW, lr: float) -> None:
    """Set the learning rate of each group to ``lr`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


class Average:
    """Exponential moving average of the trainable weights of ``source``, held in the model ``average``.

    The decay is min(``decay``, (1 + n) / (10 + n)) at update n, so that early weights are soon forgotten.
    """

    def __init__(self, average: nn.Module, source: nn.Module, decay: float):
        self.model, self.decay, self.updates = average, decay, 0
        trained = [n for n, p in source.named_parameters() if p.requires_grad]
        ours, theirs = dict(average.named_parameters()), dict(source.named_parameters())
        self._average, self._source = [ours[n].data for n in trained], [theirs[n].data for n in trained]

    @torch.no_grad()
    def update(self) -> None:
        """Average in the current weights of ``source``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._source, 1 - decay)
