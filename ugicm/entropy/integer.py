"""Integer layers: networks whose results are equal on every machine.

Probabilities must be the same where a bitstream is written and where it is read, but sums of floating-point numbers
depend on their order. The layers here compute with small integers, carried in floating point: weights from -127 to 127,
activations from 0 to 127, integer biases. Every partial sum stays below 2^24, so that float32 holds it exactly, in any
order. The operands are exact in bfloat16, TF32 and float16, too. (Integer networks for entropy models: Ballé, Johnston,
Minnen, "Integer Networks for Data Compression with Latent-Variable Models", ICLR 2019.)

Layers are matrix products on [..., C]. A convolution from a library may use Winograd's algorithm, whose intermediate
values are not integers. Concatenation, shifts and pixel shuffles are exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.errors import CheckpointError

LARGEST = 127  # of activations and weights
UNIT = 16  # integer activations of this size count as 1 in floating-point layers
LARGEST_SUM = 2**24
LARGEST_SHIFT = 16


def straight_through(exact: Tensor, x: Tensor) -> Tensor:
    """Return ``exact`` with the gradient of ``x``."""
    return x + (exact - x).detach() if torch.is_grad_enabled() else exact


def to_levels(x: Tensor, step: float) -> Tensor:
    """Return ``x / step`` rounded to integers from -127 to 127. Gradients are those of the division."""
    x = (x / step).clamp(-LARGEST, LARGEST)
    return straight_through(torch.floor(x + 0.5), x)


class IntegerLayer(nn.Module):
    """Matrix product of integers, shifted right and clamped. [..., in] -> [..., out], integers from 0 to ``high``.

    ``clamp(floor((W x + b) / 2^s + 1/2), 0, high)``. The shift s of each output is the largest for which its weights,
    ``weight * 2^s`` rounded, are at most 127. In training they are rounded in every step, with straight-through
    gradients. :meth:`prepare` rounds them for good.
    """

    def __init__(self, width_in: int, width_out: int, high: int = LARGEST):
        super().__init__()
        self.high = high
        self.prepared = False
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(width_out))  # in units of UNIT

    def rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``W / 2^s`` [out, in], ``b / 2^s + 1/2`` [out], and ``1 / 2^s`` [out]."""
        exponent = torch.frexp(self.weight.detach().abs().amax(dim=1)).exponent
        step = torch.exp2(-(7 - exponent).clamp(0, LARGEST_SHIFT).to(self.weight.dtype))
        integers = torch.round(self.weight / step[:, None]).clamp(-LARGEST, LARGEST)
        weight = straight_through(integers * step[:, None], self.weight)
        bias = self.bias * UNIT
        return weight, straight_through(torch.round(bias / step) * step, bias) + 0.5, step

    @torch.no_grad()
    def prepare(self) -> None:
        """Round the parameters, once. Raises CheckpointError if a sum could reach 2^24 units."""
        if self.prepared:
            return
        weight, bias, step = self.rounded()
        largest = (weight.abs().sum(dim=1) * LARGEST + bias.abs()) / step.clamp(max=0.5)  # the 1/2 is a unit at least
        if not bool((largest < LARGEST_SUM).all()):
            out, width = weight.shape
            raise CheckpointError(
                f"weights of a {width}->{out} integer layer of the entropy model are too large: sums of up to "
                f"{largest.max().item():.4g}, limit {LARGEST_SUM}"
            )
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.prepared = True

    def scaled(self, x: Tensor) -> Tensor:
        """Return ``(W x + b) / 2^s + 1/2``, before it is rounded down and clamped."""
        weight, bias = (self.weight, self.bias) if self.prepared else self.rounded()[:2]
        return F.linear(x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scaled(x)
        if not torch.is_grad_enabled():
            return y.floor_().clamp_(0, self.high)
        return straight_through(torch.floor(y), y).clamp(0, self.high)


def neighborhood(x: Tensor) -> Tensor:
    """Concatenate the 3x3 neighbors of every position; those outside are zero. [B, H, W, C] -> [B, H, W, 9C]."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], dim=3)


def pixel_shuffle(x: Tensor) -> Tensor:
    """Double the resolution: [B, H, W, 4C] -> [B, 2H, 2W, C]. Channels are (row, column, c)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height, width, 2, 2, channels // 4).transpose(2, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def prepare_integers(module: nn.Module) -> None:
    """Call :meth:`IntegerLayer.prepare` of every integer layer in ``module``."""
    for layer in module.modules():
        if isinstance(layer, IntegerLayer):
            layer.prepare()
