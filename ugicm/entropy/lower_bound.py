"""Lower bound with a gradient that leads back above it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.maximum(x, bound)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        x, bound = ctx.saved_tensors
        return torch.where((x >= bound) | (gradient < 0), gradient, 0), None


class LowerBound(nn.Module):
    """Compute ``max(x, bound)``. Below the bound, only a gradient that increases x under descent is passed on."""

    def __init__(self, bound: float):
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound]))

    def forward(self, x: Tensor) -> Tensor:
        return _LowerBound.apply(x, self.bound)
