"""Synthesis transform (g_s) of the compact model.

g_s mirrors :class:`ugicm.models.compact.analysis.CompactAnalysis`: residual blocks at 1/16 and 1/8 resolution, whose
features are modulated by the quality, then 8x8 pixels per position. The linear branch, if there is one, adds the detail
channels of y to the image.

The image for preference beta is the image for human preference plus beta times the output of the machine tail, so that
images for any number of preferences cost little more than two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import CompactConfig
from ugicm.models.bands import around, assemble
from ugicm.models.compact.blocks import FOLD, CompactBlock, dct_basis, dct_gain, run_blocks
from ugicm.models.layers import Pointwise, full_precision
from ugicm.tiling import Y_STRIDE


class MachineTail(nn.Module):
    """Difference between the images for machine and for human preference.

    Features of the last block [B, C, H/8, W/8] and the embedded quality [B, D] -> [B, 3, H, W]. It starts at zero, so
    that an untrained tail has no effect.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        self.blocks = _blocks(config, config.width_8, config.machine_depth)
        self.head = nn.Conv2d(config.width_8, 3 * FOLD**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, condition: Tensor | None) -> Tensor:
        return _unfold(self.head, run_blocks(features, self.blocks, condition))


def _blocks(config: CompactConfig, width: int, depth: int) -> nn.ModuleList:
    condition_width = config.quality_width if config.quality_points else 0
    return nn.ModuleList(CompactBlock(width, condition_width) for _ in range(depth))


def _unfold(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Apply a 3x3 layer from features [B, C, H/8, W/8] to blocks of 8x8 pixels -> [B, 3, H, W], by bands."""
    height, width = features.shape[-2:]

    def piece(rows: slice) -> Tensor:
        wider, own = around(rows, height)
        return F.pixel_shuffle(head(features[:, :, wider])[:, :, own], FOLD)

    return assemble(piece, features, height, width, 2)


class CompactSynthesis(nn.Module):
    """g_s: y_hat [B, M, H/16, W/16], preferences and quality [B] -> an image [B, 3, H, W] per preference, not clamped.

    The quality has no effect in a one-rate model. Layers outside the blocks stay in float32 under autocast: in bfloat16
    they would cost 0.02 dB at the highest rates, whereas the blocks, which add to float32 sums, cost less than 0.01 dB.
    The machine tail, whose output is small, has no such layer.
    """

    def __init__(self, config: CompactConfig):
        super().__init__()
        width = config.quality_width
        layers = nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        self.quality = nn.Sequential(*layers) if config.quality_points else None
        self.stem = Pointwise(config.M, config.width_16)
        self.blocks_16 = _blocks(config, config.width_16, config.depth_16)
        self.up = Pointwise(config.width_16, 4 * config.width_8)
        self.blocks_8 = _blocks(config, config.width_8, config.depth_8)
        self.head = nn.Conv2d(config.width_8, 3 * FOLD**2, 3, padding=1)
        self.detail = Pointwise(config.detail_width, 3 * Y_STRIDE**2, bias=False) if config.detail_width else None
        basis = dct_basis()[: config.width_8]
        with torch.no_grad():  # inverse of the analysis transform's first layer
            self.head.weight.mul_(0.1)
            self.head.weight[:, : len(basis), 1, 1] += (basis / dct_gain(len(basis))[:, None]).T
            self.head.bias.zero_()
        self.machine = MachineTail(config) if config.machine_depth else None

    def forward(self, y_hat: Tensor, betas: Sequence[Tensor], quality: Tensor) -> list[Tensor]:
        """Return one image for each preference, [B] or a map [B, 1, H, W].

        The machine tail is skipped if all preferences are known to be 0: values on a GPU are not read.
        """
        human, features, condition = self.trunk(y_hat, quality)
        if self.machine is None or all(beta.device.type == "cpu" and not bool(beta.any()) for beta in betas):
            return [human for _ in betas]
        difference = self.machine(features, condition)
        return [torch.addcmul(human, difference, _per_position(beta.to(human))) for beta in betas]

    def trunk(self, y_hat: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the image for human preference, and what the machine tail takes: features and embedded quality."""
        condition = None if self.quality is None else self.quality(quality[:, None].to(self.stem.weight.dtype))
        h_16 = run_blocks(full_precision(self.stem, y_hat), self.blocks_16, condition)
        height, width = (2 * side for side in h_16.shape[-2:])

        def upsample(rows: slice) -> Tensor:
            return F.pixel_shuffle(full_precision(self.up, h_16[:, :, rows.start // 2 : rows.stop // 2]), 2)

        h = assemble(upsample, h_16, height, width, 2)
        h_8 = run_blocks(h, self.blocks_8, condition)
        x = _unfold(lambda features: full_precision(self.head, features), h_8) + 0.5
        if self.detail is not None:
            x = x + self._details(y_hat)
        return x, h_8, condition

    def _details(self, y_hat: Tensor) -> Tensor:
        """Return what the detail channels of y_hat add to the image."""
        coefficients = y_hat[:, -self.detail.in_channels :]

        def piece(rows: slice) -> Tensor:
            return F.pixel_shuffle(full_precision(self.detail, coefficients[:, :, rows]), Y_STRIDE)

        return assemble(piece, y_hat, *y_hat.shape[-2:])


def _per_position(beta: Tensor) -> Tensor:
    """Return preferences [B] or [B, 1, H, W] in a shape that multiplies images."""
    return beta[:, None, None, None] if beta.dim() == 1 else beta
