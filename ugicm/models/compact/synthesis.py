"""Synthesis transform of the compact model, modulated by the preference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import ModelConfig
from ugicm.models.bands import around, assemble
from ugicm.models.compact.blocks import FOLD, MachineBranch, PatchBlock, run_blocks
from ugicm.models.conditional_decoder import Condition
from ugicm.models.layers import Pointwise, full_precision
from ugicm.tiling import Y_STRIDE


class DetailSynthesis(Pointwise):
    """The way back: coefficients [B, width, H/16, W/16] -> what they add to the image, [B, 3, H, W]."""

    def __init__(self, width: int):
        super().__init__(width, 3 * Y_STRIDE**2, bias=False)

    def forward(self, y_hat: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(y_hat), Y_STRIDE)


class PatchSynthesis(nn.Module):
    """g_s: y_hat [B, M, H/16, W/16] and a condition -> image [B, 3, H, W], not clamped.

    With ``branch_width`` each block has a :class:`MachineBranch` beside it, which is left out where everyone who
    looks is human. Layers outside of blocks stay in float32 under autocast: in bfloat16 they would take 0.02 dB of the
    best images, where the blocks, which only add to float32 sums, take less than 0.01.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.stem = Pointwise(config.M, config.width_16)
        self.blocks_16 = nn.ModuleList(PatchBlock(config.width_16, config.beta_width) for _ in range(config.depth_16))
        self.up = Pointwise(config.width_16, 4 * config.width_8)
        self.blocks_8 = nn.ModuleList(PatchBlock(config.width_8, config.beta_width) for _ in range(config.depth_8))
        self.head = nn.Conv2d(config.width_8, 3 * FOLD**2, 3, padding=1)
        self.detail = DetailSynthesis(config.detail_width) if config.detail_width else None
        inner = config.branch_width
        self.branches_16 = nn.ModuleList(MachineBranch(config.width_16, inner) for _ in self.blocks_16 if inner)
        self.branches_8 = nn.ModuleList(MachineBranch(config.width_8, inner) for _ in self.blocks_8 if inner)

    def forward(self, y_hat: Tensor, condition: Condition) -> Tensor:
        branched = self.training or not condition.human
        h = full_precision(self.stem, y_hat)
        h_16 = run_blocks(h, self.blocks_16, condition, self.branches_16 if branched else None)
        height, width = (2 * side for side in h_16.shape[-2:])

        def larger(rows: slice) -> Tensor:
            return F.pixel_shuffle(full_precision(self.up, h_16[:, :, rows.start // 2 : rows.stop // 2]), 2)

        h = assemble(larger, h_16, height, width, 2)
        h_8 = run_blocks(h, self.blocks_8, condition, self.branches_8 if branched else None)

        def image(rows: slice) -> Tensor:
            wider, own = around(rows, height)
            below = slice(rows.start * FOLD // Y_STRIDE, rows.stop * FOLD // Y_STRIDE)
            return self._image(h_8[:, :, wider], own, y_hat[:, :, below])

        return assemble(image, h_8, height, width, Y_STRIDE // FOLD)

    def _image(self, h: Tensor, rows: slice, y_hat: Tensor) -> Tensor:
        """The last layers, on ``rows`` of h; y_hat on these rows alone."""
        x = F.pixel_shuffle(full_precision(self.head, h)[:, :, rows], FOLD) + 0.5
        return x if self.detail is None else x + full_precision(self.detail, y_hat[:, -self.detail.in_channels :])
