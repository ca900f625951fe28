"""Muon for convolutions, AdamW for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ugicm.errors import ConfigError

SMALLEST_SIDE = 16  # of the matrices that Muon orthogonalizes; depthwise convolutions have 9 columns


def _is_matrix(parameter: Tensor) -> bool:
    """Return whether Muon updates a parameter: the weight of a convolution, as a matrix [O, I * K * K]."""
    return parameter.dim() == 4 and min(len(parameter), parameter[0].numel()) >= SMALLEST_SIDE


class MuonAdamW:
    """Optimizer that orthogonalizes the updates of convolutions, and treats other parameters as AdamW does.

    Updates have the size of AdamW's, so that the same learning rates work. Jordan et al., "Muon: An optimizer for
    hidden layers in neural networks", 2024; size of the updates: Liu et al., "Muon is scalable for LLM training", 2025.

    Args:
        groups: parameter groups of PyTorch's optimizers; ``lr`` may be changed between steps.
        betas: of AdamW.

    Raises ConfigError if PyTorch is older than 2.9, or there is no such convolution.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"optim.name: muon needs PyTorch 2.9 or later, this is {torch.__version__}")
        self.param_groups = groups
        # PyTorch's Muon takes matrices only: copies, as convolutions may lie in memory as channels_last.
        pairs = [[(p, p.detach().flatten(1).clone()) for p in group["params"] if _is_matrix(p)] for group in groups]
        matrices = [[matrix for _, matrix in of_group] for of_group in pairs]
        others = [[p for p in group["params"] if not _is_matrix(p)] for group in groups]
        self._pairs = sum(pairs, [])  # convolutions and their matrices
        if not self._pairs:
            raise ConfigError("optim.name: muon: no convolution is trained; use adamw")
        self._muon = torch.optim.Muon(_with_params(groups, matrices), adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(_with_params(groups, others), betas=betas, fused=True)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters."""
        for optimizer in (self._muon, self._adamw):
            for group, inner in zip(self.param_groups, optimizer.param_groups, strict=True):
                inner["lr"] = group["lr"]
        for parameter, matrix in self._pairs:
            matrix.copy_(parameter.flatten(1))
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        self._muon.step()
        for parameter, matrix in self._pairs:
            parameter.copy_(matrix.view_as(parameter))
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the states of both optimizers."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


def _with_params(groups: list[dict[str, Any]], params: list[list[Tensor]]) -> list[dict[str, Any]]:
    return [{**group, "params": own} for group, own in zip(groups, params, strict=True)]
