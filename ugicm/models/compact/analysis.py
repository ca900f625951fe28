"""Analysis and hyper-analysis transforms of the compact model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import ModelConfig
from ugicm.entropy.fixed_point import activation
from ugicm.models.bands import assemble
from ugicm.models.compact.blocks import FOLD, PatchBlock, run_blocks
from ugicm.models.layers import Pointwise, full_precision
from ugicm.tiling import Y_STRIDE


class DetailAnalysis(Pointwise):
    """Blocks of 16x16 pixels, [B, 3, H, W] about 0 -> ``width`` linear coefficients each, [B, width, H/16, W/16].

    What the deep transform cannot carry at high rates; see :mod:`ugicm.training.detail_channels` for where it begins.
    """

    def __init__(self, width: int):
        super().__init__(3 * Y_STRIDE**2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pixel_unshuffle(x, Y_STRIDE))


class PatchAnalysis(nn.Module):
    """g_a: image [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16].

    Features between blocks and the last layer stay in float32 under autocast: they carry the sums.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.stem = Pointwise(3 * FOLD**2, config.width_8)
        self.blocks_8 = nn.ModuleList(PatchBlock(config.width_8) for _ in range(config.depth_8))
        self.down = nn.Conv2d(config.width_8, config.width_16, 2, stride=2)
        self.blocks_16 = nn.ModuleList(PatchBlock(config.width_16) for _ in range(config.depth_16))
        self.head = Pointwise(config.width_16, config.M - config.detail_width)
        self.detail = DetailAnalysis(config.detail_width) if config.detail_width else None

    def forward(self, x: Tensor) -> Tensor:

        def blocks(size: int) -> list[int]:
            """Blocks of pixels downwards and across; parts of one, too, so that folding refuses them."""
            return [-(-side // size) for side in x.shape[-2:]]

        def centerd(rows: slice, size: int) -> Tensor:
            """The pixels in ``rows`` of blocks of ``size``, about 0."""
            return x[:, :, rows.start * size : rows.stop * size] - 0.5

        h = assemble(lambda rows: self.stem(F.pixel_unshuffle(centerd(rows, FOLD), FOLD)), x, *blocks(FOLD))
        h = run_blocks(h, self.blocks_8)
        h = self.down(h).float()
        h = run_blocks(h, self.blocks_16)
        y = full_precision(self.head, h)
        if self.detail is None:
            return y
        detail = assemble(lambda rows: full_precision(self.detail, centerd(rows, Y_STRIDE)), x, *blocks(Y_STRIDE))
        return torch.cat([y, detail], dim=1)


class CompactHyperAnalysis(nn.Module):
    """h_a: y -> z [B, N, H/64, W/64]. Only the writer runs it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(config.M - config.detail_width, config.N, 3, padding=1)  # detail is known from the rest
        self.conv2 = nn.Conv2d(config.N, config.N, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(config.N, config.N, 3, stride=2, padding=1)
        # z must rise above the quantization noise from the start, or the rate term silences it for good.
        with torch.no_grad():
            self.conv3.weight.mul_(8)

    def forward(self, y: Tensor) -> Tensor:
        y = y[:, : self.conv1.in_channels]
        return self.conv3(activation(self.conv2(activation(self.conv1(y)))))
