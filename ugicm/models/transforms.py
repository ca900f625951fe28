"""Analysis, hyper-analysis and hyper-synthesis of the two published backbones.

``Residual*`` and ``Hyper*`` are MLIC++'s (Jiang et al., 2023); ``Gdn*`` are the mean-scale
hyperprior's (Ballé et al., ICLR 2018; Minnen, Ballé, Toderici, NeurIPS 2018). Both decode with the
conditional synthesis of :mod:`ugicm.models.conditional_decoder`.

Shapes: image x [B, 3, H, W] in [0, 1], H and W multiples of 64; latent y [B, M, H/16, W/16]; hyper latent
z [B, N, H/64, W/64]; hyper context [B, 2M, H/16, W/16], the first half for scales, the second for means.
"""

from __future__ import annotations

from torch import Tensor, nn

from ugicm.models.layers import GDN, ResidualBlock, ResidualDown, conv3x3, full_precision, subpel_conv3x3


class Analysis(nn.Sequential):
    """Layers of which the last never runs in reduced precision: bfloat16 cannot hold y to the nearest integer."""

    def forward(self, x: Tensor) -> Tensor:
        *layers, last = self
        room = None
        for layer in layers:
            if isinstance(layer, ResidualDown):
                x, room = layer(x)
            elif isinstance(layer, ResidualBlock):
                x = layer(x, reuse=True, room=room)
            else:
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


def halve(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)


def double(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1)


class GdnAnalysis(Analysis):
    """g_a of the hyperprior: four 5x5 convolutions with stride 2, GDN between them. x -> y."""

    def __init__(self, N: int, M: int):
        super().__init__(halve(3, N), GDN(N), halve(N, N), GDN(N), halve(N, N), GDN(N), halve(N, M))


class GdnHyperAnalysis(nn.Sequential):
    """h_a of the mean-scale hyperprior: y -> z."""

    def __init__(self, N: int, M: int):
        super().__init__(
            nn.Conv2d(M, N, 3, padding=1), nn.LeakyReLU(),
            halve(N, N), nn.LeakyReLU(),
            halve(N, N),
        )  # fmt: skip


class GdnHyperSynthesis(nn.Sequential):
    """h_s of the mean-scale hyperprior: z_hat -> hyper context, here the scales and means themselves."""

    def __init__(self, N: int, M: int):
        middle = M * 3 // 2
        super().__init__(
            double(N, M), nn.LeakyReLU(),
            double(M, middle), nn.LeakyReLU(),
            nn.Conv2d(middle, 2 * M, 3, padding=1),
        )  # fmt: skip
