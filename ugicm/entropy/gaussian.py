"""The latent's conditional Gaussian and its tabulated scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ugicm.entropy.factorized import GaussianConditional

PRIOR = 4  # observations a symbol


def log_spaced(low: float, high: float, levels: int) -> list[float]:
    """``levels`` scales from ``low`` to ``high``, evenly spaced in the logarithm.

    In Python's float64, since PyTorch's float32 logarithms differ in their last bit between instruction sets, and
    streams depend on every bit of a table.
    """
    step = (math.log(high) - math.log(low)) / max(levels - 1, 1)
    return [math.exp(math.log(low) + i * step) for i in range(levels)]


class TabulatedGaussian(GaussianConditional):
    """CompressAI's Gaussian conditional whose table is chosen by *nearest* scale (in the logarithm).

    CompressAI rounds a scale up to the next tabulated one; the nearest one halves the mismatch. Positions that
    fall on the smallest scale are *certain*: the probability of any symbol but 0 is about 1e-5 there, so the
    coders leave them out and ``y_hat`` is the mean. ``sparse=False`` gives CompressAI's own rule, under which
    the released checkpoints were trained and written.

    The CDF tables are integers and part of the checkpoint: they are built once, where the model is made, and
    never recomputed where a stream is read.
    """

    def __init__(self, scale_table: list[float], sparse: bool):
        super().__init__(scale_table, scale_bound=scale_table[0])
        self.sparse = sparse
        self.register_buffer("_coding_bounds", None, persistent=False)

    def update(self) -> None:
        """Build the CDF tables: CompressAI's, from cumulative probabilities in float64. Those in float32 differ between
        instruction sets, and at times by enough to change an entry."""
        single = self._standardized_cumulative
        self._standardized_cumulative = lambda inputs: single(inputs.double())
        try:
            super().update()
        finally:
            del self._standardized_cumulative

    def calibrate(self, counts: Tensor) -> None:
        """Replace the probabilities in the tables by measured ones.

        ``counts`` [rows, longest row - 1]: how often each symbol of a row occurred, in the order of the table, escapes
        last. Both signs count as one, and the Gaussian as :data:`PRIOR` observations a symbol, in its own proportions:
        what is never seen keeps a place. Real latents peak higher than the Gaussian, with longer tails; where the
        scale is small it all but rules out what happens once in a thousand times.
        """
        lengths = self.cdf_length - 2  # without an escape and the end
        longest = int(lengths.max())
        pmf, escape = torch.zeros(len(lengths), longest), torch.zeros(len(lengths), 1)
        for row, length in enumerate(lengths.tolist()):
            symbols, escapes = counts[row, : length + 1].double().split([length, 1])
            seen = torch.cat([(symbols + symbols.flip(0)) / 2, escapes])
            gaussian = self.quantized_cdf[row, : length + 2].diff().double() / 2**self.entropy_coder_precision
            wanted = seen + PRIOR * len(gaussian) * gaussian
            wanted /= wanted.sum()
            pmf[row, :length], escape[row] = wanted[:-1], wanted[-1]
        self._quantized_cdf = self._pmf_to_cdf(pmf, escape, lengths, longest)

    def bounds(self) -> Tensor:
        """Where one table row ends and the next begins: float64, one less than there are rows."""
        table = self.scale_table.double()
        if not self.sparse:
            return table[:-1]
        # To 20 fractional bits, so that the last bit of a square root decides nothing.
        return torch.round((table[:-1] * table[1:]).sqrt() * 2**20) / 2**20

    def prepare_for_coding(self) -> None:
        """Keep :meth:`bounds`, which do not change any more."""
        self._coding_bounds = self.bounds()

    def bounds_for(self, scales: Tensor) -> Tensor:
        """:meth:`bounds` on the device and in the type of ``scales``."""
        return (self.bounds() if self._coding_bounds is None else self._coding_bounds).to(scales)

    def build_indexes(self, scales: Tensor) -> Tensor:
        """Index of the table row for every scale: int64, same shape. Exact comparisons, no arithmetic."""
        return torch.bucketize(scales.contiguous(), self.bounds_for(scales))

    def certain(self, indexes: Tensor) -> Tensor:
        """Which rows of the table, as :meth:`build_indexes` gives them, are of certain positions: bool, same shape."""
        return (indexes == 0) & self.sparse

    def probability(self, symbols: Tensor, scales: Tensor) -> Tensor:
        """Of integers about a mean of 0, bounded from below; differentiable in the scales. All of one shape."""
        return self.likelihood_lower_bound(self._likelihood(symbols, scales))

    def borderline(self, scales: Tensor, indexes: Tensor, guard: float) -> Tensor:
        """Scales so close (relative to ``guard``) to the bound of their row that another machine may differ.

        Returns the neighboring row's index where that is so, elsewhere the index itself.
        """
        bounds, scales = self.bounds_for(scales), scales.contiguous()
        if_larger = torch.bucketize(scales, bounds * (1 - guard), right=True)  # one more where the bound above is near
        if_smaller = torch.bucketize(scales, bounds * (1 + guard))  # one less where the bound below is near
        return if_larger + if_smaller - indexes
