"""Synthesis transform (g_s) of the compact model, conditioned on the preference.

g_s mirrors :class:`ugicm.models.compact.analysis.CompactAnalysis`: residual blocks at 1/16 and 1/8 resolution, whose
features are modulated by the preference, then 8x8 pixels per position. The linear branch, if there is one, adds the
detail channels of y to the image.

With a machine tail the blocks depend on the quality only. The image for preference beta is the human image plus beta
times the output of the tail, so that images for any number of preferences cost little more than two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import CompactConfig
from ugicm.models.bands import around, assemble
from ugicm.models.compact.blocks import FOLD, CompactBlock, MachineBranch, dct_basis, dct_gain, run_blocks
from ugicm.models.conditional_decoder import Condition
from ugicm.models.layers import Pointwise, full_precision
from ugicm.tiling import Y_STRIDE


class MachineTail(nn.Module):
    """Difference between the images for machine and for human preference.

    Features of the last block [B, C, H/8, W/8] and a condition -> [B, 3, H, W]. It starts at zero.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        width = config.width_8
        self.blocks = nn.ModuleList(CompactBlock(width, config.beta_width) for _ in range(config.machine_depth))
        self.head = nn.Conv2d(width, 3 * FOLD**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, condition: Condition) -> Tensor:
        return _unfold(self.head, run_blocks(features, self.blocks, condition))


def _unfold(head: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a layer from features [B, C, H/8, W/8] to blocks of 8x8 pixels -> [B, 3, H, W], by bands."""
    height, width = features.shape[-2:]

    def piece(rows: slice) -> Tensor:
        wider, own = around(rows, height)
        return F.pixel_shuffle(full_precision(head, features[:, :, wider])[:, :, own], FOLD)

    return assemble(piece, features, height, width, 2)


class CompactSynthesis(nn.Module):
    """g_s: y_hat [B, M, H/16, W/16] and a condition -> image [B, 3, H, W], not clamped.

    If ``branch_width`` is not 0, a :class:`MachineBranch` runs in parallel to each block, except in inference where
    the preference is 0 everywhere. Layers outside the blocks stay in float32 under autocast: in bfloat16 they would
    cost 0.02 dB at the highest rates, whereas the blocks, which add to float32 sums, cost less than 0.01 dB.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        self.stem = Pointwise(config.M, config.width_16)
        self.blocks_16 = nn.ModuleList(
            CompactBlock(config.width_16, config.beta_width) for _ in range(config.depth_16)
        )
        self.up = Pointwise(config.width_16, 4 * config.width_8)
        self.blocks_8 = nn.ModuleList(CompactBlock(config.width_8, config.beta_width) for _ in range(config.depth_8))
        self.head = nn.Conv2d(config.width_8, 3 * FOLD**2, 3, padding=1)
        self.detail = Pointwise(config.detail_width, 3 * Y_STRIDE**2, bias=False) if config.detail_width else None
        basis = dct_basis()[: config.width_8]
        with torch.no_grad():  # inverse of the analysis transform's first layer
            self.head.weight.mul_(0.1)
            self.head.weight[:, : len(basis), 1, 1] += (basis / dct_gain(len(basis))[:, None]).T
            self.head.bias.zero_()
        inner = config.branch_width
        self.branches_16 = nn.ModuleList(MachineBranch(config.width_16, inner) for _ in self.blocks_16 if inner)
        self.branches_8 = nn.ModuleList(MachineBranch(config.width_8, inner) for _ in self.blocks_8 if inner)
        self.machine = MachineTail(config) if config.machine_depth else None

    def forward(self, y_hat: Tensor, condition: Condition) -> Tensor:
        return self.with_features(y_hat, condition)[0]

    def with_features(self, y_hat: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the image and the features that it is made of, [B, C, H/8, W/8], for the machine tail."""
        branched = self.training or not condition.human
        h = full_precision(self.stem, y_hat)
        h_16 = run_blocks(h, self.blocks_16, condition, self.branches_16 if branched else None)
        height, width = (2 * side for side in h_16.shape[-2:])

        def upsample(rows: slice) -> Tensor:
            return F.pixel_shuffle(full_precision(self.up, h_16[:, :, rows.start // 2 : rows.stop // 2]), 2)

        h = assemble(upsample, h_16, height, width, 2)
        h_8 = run_blocks(h, self.blocks_8, condition, self.branches_8 if branched else None)
        x = _unfold(self.head, h_8) + 0.5
        if self.detail is not None:
            x = x + self._details(y_hat)
        return x, h_8

    def _details(self, y_hat: Tensor) -> Tensor:
        """Return what the detail channels of y_hat add to the image."""
        coefficients = y_hat[:, -self.detail.in_channels :]

        def piece(rows: slice) -> Tensor:
            return F.pixel_shuffle(full_precision(self.detail, coefficients[:, :, rows]), Y_STRIDE)

        return assemble(piece, y_hat, *y_hat.shape[-2:])
