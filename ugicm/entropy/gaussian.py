"""Conditional Gaussian of the latent and its tabulated scales."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from ugicm.entropy.lower_bound import LowerBound
from ugicm.entropy.tables import PRECISION, TAIL_MASS, TabulatedPrior

PRIOR_OBSERVATIONS = 4  # per symbol: weight of the Gaussian in calibration


def log_spaced(low: float, high: float, levels: int) -> list[float]:
    """Return ``levels`` scales from ``low`` to ``high``, evenly spaced in the logarithm.

    The arithmetic is Python's float64: PyTorch's float32 logarithms differ in the last bit between instruction sets,
    and bitstreams depend on every bit of a table.
    """
    step = (math.log(high) - math.log(low)) / max(levels - 1, 1)
    return [math.exp(math.log(low) + i * step) for i in range(levels)]


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-(2**-0.5) * x)


class TabulatedGaussian(TabulatedPrior):
    """Gaussian whose scale is one of a table of scales, one row of the CDF tables each.

    A scale is rounded up to the next tabulated one (:meth:`build_indexes`), as in CompressAI, or the row is given.
    State dicts are interchangeable with those of CompressAI's ``GaussianConditional``, but for its redundant
    ``scale_bound``.
    """

    def __init__(self, scale_table: list[float]):
        super().__init__()
        self.lower_bound_scale = LowerBound(scale_table[0])
        self.register_buffer("scale_table", torch.tensor(scale_table))

    def scale_of(self, rows: Tensor) -> Tensor:
        """Return the scales of table rows: floating point, at least 0, not necessarily integers. Differentiable."""
        low, high = self.scale_table[0], self.scale_table[-1]
        return low * torch.exp(rows * ((high / low).log() / max(len(self.scale_table) - 1, 1)))

    def likelihood(self, residual: Tensor, scale: Tensor) -> Tensor:
        """Return the probability of the unit interval around each residual (value - mean), at least 1e-9.

        Differentiable in both arguments, which have one shape. Scales are used as they are, not rounded to the table.
        """
        scale, distance = self.lower_bound_scale(scale), residual.abs()
        upper, lower = _normal_cdf((0.5 - distance) / scale), _normal_cdf((-0.5 - distance) / scale)
        return self.likelihood_lower_bound(upper - lower)

    def build_tables(self) -> None:
        """Build the CDF tables. Cumulative probabilities are float64: those in float32 differ between instruction sets,
        at times by enough to change an entry."""
        reach = torch.ceil(self.scale_table * -NormalDist().inv_cdf(TAIL_MASS / 2)).long()
        rows = []
        for scale, n in zip(self.scale_table.float(), reach.tolist()):
            distance = torch.arange(-n, n + 1, device=scale.device).abs().float()
            upper, lower = (_normal_cdf(((side - distance) / scale).double()) for side in (0.5, -0.5))
            rows.append(torch.cat([upper - lower, 2 * lower[:1]]))
        self.set_tables(rows, -reach)

    def calibrate(self, counts: Tensor) -> None:
        """Replace the probabilities in the tables by measured ones (CDF calibration).

        ``counts`` [rows, longest row - 1] holds how often each symbol of a row occurred, in the order of the table,
        escapes last. Both signs count as one symbol. The Gaussian counts as :data:`PRIOR_OBSERVATIONS` observations
        per symbol, in its own proportions, so that symbols that never occurred keep a place. Real latents have a higher
        peak and longer tails than the Gaussian, which all but rules out rare symbols where the scale is small.
        """
        rows = []
        for cdf, length, counted in zip(self.quantized_cdf, self.cdf_length.tolist(), counts.double()):
            gaussian = cdf[:length].diff().double() / 2**PRECISION
            symbols, escapes = counted[: length - 1].split([length - 2, 1])
            wanted = torch.cat([(symbols + symbols.flip(0)) / 2, escapes])
            wanted += PRIOR_OBSERVATIONS * len(gaussian) * gaussian
            rows.append(wanted / wanted.sum())
        self.set_tables(rows, self.offset)

    def build_indexes(self, scale: Tensor) -> Tensor:
        """Return the table row of every scale: int64, same shape. Comparisons are exact, without arithmetic."""
        return torch.bucketize(scale.contiguous(), self.scale_table[:-1])

    def borderline(self, scale: Tensor, rows: Tensor, guard: float) -> Tensor:
        """Return the row that another machine may choose for each scale, given a relative error of up to ``guard``.

        That is the neighboring row where a bound is so close, else the row itself. ``rows`` are those of
        :meth:`build_indexes`.
        """
        bounds, scale = self.scale_table[:-1], scale.contiguous()
        if_larger = torch.bucketize(scale, bounds * (1 - guard), right=True)  # one more where the bound above is near
        if_smaller = torch.bucketize(scale, bounds * (1 + guard))  # one less where the bound below is near
        return if_larger + if_smaller - rows
