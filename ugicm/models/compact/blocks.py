"""Blocks of the compact transforms."""

from __future__ import annotations

from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.models.bands import ALL_ROWS, by_bands, in_bands
from ugicm.models.conditional_decoder import Condition
from ugicm.models.layers import Pointwise

FOLD = 8  # pixels folded into channels, each way


def _rectify(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=not torch.is_grad_enabled())


def _plus(update: Tensor, x: Tensor) -> Tensor:
    """x + update, in the memory of ``update`` unless that is of reduced precision."""
    return update.add_(x) if update.dtype == x.dtype else x + update


class PatchBlock(nn.Module):
    """Pointwise, depthwise, pointwise; then a pointwise feed-forward pair; both residual. [B, C, H, W] -> same, or only
    its ``rows``.

    With ``condition_width`` the features between pointwise and depthwise are scaled and shifted per channel by a
    projection of the condition that starts at zero, so an untrained condition has no effect.
    """

    def __init__(self, width: int, condition_width: int = 0):
        super().__init__()
        self.expand = Pointwise(width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project = Pointwise(width, width)
        self.widen = Pointwise(width, 2 * width)
        self.narrow = Pointwise(2 * width, width)
        self.modulation = None
        if condition_width:
            self.modulation = nn.Linear(condition_width, 2 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Condition | None = None, rows: slice = ALL_ROWS) -> Tensor:
        h = _rectify(self.expand(x))
        if self.modulation is not None and condition is not None:
            scale, shift = condition.project(self.modulation, h.shape[-2:]).to(h.dtype).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        x = _plus(self.project(self.depthwise(h)[:, :, rows]), x[:, :, rows])
        return _plus(self.narrow(_rectify(self.widen(x))), x)


class MachineBranch(nn.Module):
    """What only machines see beside a :class:`PatchBlock`: pointwise down to ``inner`` channels, depthwise, pointwise
    up, times the preference. x [B, C, H, W] and y, the block's result (all or only its ``rows``) -> y with it.

    At preference 0 it adds nothing, so it can be trained alone without any change to the image for people; an
    untrained one adds nothing at any preference. (A parallel adapter: He et al., "Towards a Unified View of
    Parameter-Efficient Transfer Learning", ICLR 2022; here with a depthwise convolution, for texture.)
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.reduce = Pointwise(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.widen = Pointwise(inner, width)
        nn.init.zeros_(self.widen.weight)
        nn.init.zeros_(self.widen.bias)

    def forward(self, x: Tensor, y: Tensor, condition: Condition, rows: slice = ALL_ROWS) -> Tensor:
        h = _rectify(self.depthwise(_rectify(self.reduce(x)))[:, :, rows])
        return torch.addcmul(y, self.widen(h).float(), condition.preference(h.shape[-2:]))


def run_blocks(
    x: Tensor, blocks: nn.ModuleList, condition: Condition | None = None, branches: nn.ModuleList | None = None
) -> Tensor:
    """One block after the other, each with the branch beside it where there are any. [B, C, H, W] -> same.

    By bands where :func:`by_bands` says so, unless the preference is a map; x may be overwritten then.
    """
    banded = by_bands(x) and (condition is None or condition.level_map is None)
    for block, branch in zip_longest(blocks, branches or ()):

        def both(x: Tensor, rows: slice, block: PatchBlock = block, branch: MachineBranch | None = branch) -> Tensor:
            y = block(x, condition, rows)
            return y if branch is None else branch(x, y, condition, rows)

        x = in_bands(both, x) if banded else both(x, ALL_ROWS)
    return x
