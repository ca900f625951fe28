"""Mean-scale hyperprior with convolutional transforms and GDN.

Ballé, Minnen, Singh, Hwang, Johnston, "Variational Image Compression with a Scale Hyperprior" (ICLR 2018), with means
as in Minnen, Ballé, Toderici, "Joint Autoregressive and Hierarchical Priors for Learned Image Compression" (NeurIPS
2018), without the autoregressive context. Shapes are those of :mod:`ugicm.models.transforms`. The synthesis is the
conditional one of :mod:`ugicm.models.conditional_decoder`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ugicm.entropy.checkerboard import ALL
from ugicm.entropy.model import Coder
from ugicm.models.layers import GDN
from ugicm.models.transforms import Analysis


def _down(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)


def _up(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1)


class GdnAnalysis(Analysis):
    """g_a: x -> y, by four 5x5 convolutions with stride 2 and GDN between them."""

    def __init__(self, N: int, M: int):
        super().__init__(_down(3, N), GDN(N), _down(N, N), GDN(N), _down(N, N), GDN(N), _down(N, M))


class GdnHyperAnalysis(nn.Sequential):
    """h_a: y -> z."""

    def __init__(self, N: int, M: int):
        super().__init__(
            nn.Conv2d(M, N, 3, padding=1), nn.LeakyReLU(), _down(N, N), nn.LeakyReLU(), _down(N, N)
        )


class GdnHyperSynthesis(nn.Sequential):
    """h_s: z_hat -> hyper context, which consists of the scales and means themselves."""

    def __init__(self, N: int, M: int):
        middle = M * 3 // 2
        super().__init__(
            _up(N, M), nn.LeakyReLU(), _up(M, middle), nn.LeakyReLU(), nn.Conv2d(middle, 2 * M, 3, padding=1)
        )


class HyperpriorSlices(nn.Module):
    """A single slice without context: one pass over y."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.widths = widths

    def forward(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor:
        """Code y [B, M, H, W] (None in decoding) given the scales and means [B, 2M, H, W]. Returns y_hat."""
        scale, mean = hyper.chunk(2, dim=1)
        return coder.code(scale, mean, ALL, y)
