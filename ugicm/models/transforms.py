"""Analysis, hyper-analysis and hyper-synthesis of MLIC++ (Jiang et al., 2023).

Shapes: image x [B, 3, H, W] in [0, 1], H and W multiples of 64. Latent y [B, M, H/16, W/16]. Hyper latent z
[B, N, H/64, W/64]. Hyper context [B, 2M, H/16, W/16]: its first half is for scales, the second for means. The
synthesis is in :mod:`ugicm.models.conditional_decoder`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ugicm.models.layers import ResidualBlock, ResidualDown, conv3x3, full_precision, subpel_conv3x3


class Analysis(nn.Sequential):
    """Layers whose last one always runs in full precision: bfloat16 cannot hold y to the nearest integer."""

    def forward(self, x: Tensor) -> Tensor:
        *layers, last = self
        for layer in layers:
            x = layer(x)
        return full_precision(last, x)


class ResidualAnalysis(Analysis):
    """g_a of MLIC++: x -> y."""

    def __init__(self, N: int, M: int):
        super().__init__(
            ResidualDown(3, N), ResidualBlock(N, N),
            ResidualDown(N, N), ResidualBlock(N, N),
            ResidualDown(N, N), ResidualBlock(N, N),
            conv3x3(N, M, stride=2),
        )  # fmt: skip


class HyperAnalysis(nn.Sequential):
    """h_a of MLIC++: y -> z."""

    def __init__(self, N: int, M: int):
        super().__init__(
            conv3x3(M, N), nn.GELU(),
            conv3x3(N, N), nn.GELU(),
            conv3x3(N, N, stride=2), nn.GELU(),
            conv3x3(N, N), nn.GELU(),
            conv3x3(N, N, stride=2),
        )  # fmt: skip


class HyperSynthesis(nn.Sequential):
    """h_s of MLIC++: z_hat -> hyper context."""

    def __init__(self, N: int, M: int):
        middle = M * 3 // 2
        super().__init__(
            conv3x3(N, M), nn.GELU(),
            subpel_conv3x3(M, M, 2), nn.GELU(),
            conv3x3(M, middle), nn.GELU(),
            subpel_conv3x3(middle, middle, 2), nn.GELU(),
            conv3x3(middle, 2 * M),
        )  # fmt: skip
