"""The latent's conditional Gaussian and its tabulated scales."""

from __future__ import annotations

import math

import torch
from compressai.entropy_models import GaussianConditional
from torch import Tensor


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

    def update(self) -> None:
        """Build the CDF tables: CompressAI's, from cumulative probabilities in float64. Those in float32 differ between
        instruction sets, and at times by enough to change an entry."""
        single = self._standardized_cumulative
        self._standardized_cumulative = lambda inputs: single(inputs.double())
        try:
            super().update()
        finally:
            del self._standardized_cumulative

    def bounds(self) -> Tensor:
        """Where one table row ends and the next begins: float64, one less than there are rows."""
        table = self.scale_table.double()
        if not self.sparse:
            return table[:-1]
        # To 20 fractional bits, so that the last bit of a square root decides nothing.
        return torch.round((table[:-1] * table[1:]).sqrt() * 2**20) / 2**20

    def build_indexes(self, scales: Tensor) -> Tensor:
        """Index of the table row for every scale: int64, same shape. Exact comparisons, no arithmetic."""
        return torch.bucketize(scales.contiguous(), self.bounds().to(scales.dtype))

    def borderline(self, scales: Tensor, indexes: Tensor, guard: float) -> Tensor:
        """Scales so close (relative to ``guard``) to the bound of their row that another machine may differ.

        Returns the neighbouring row's index where that is so, elsewhere the index itself.
        """
        bounds = self.bounds().to(scales.dtype)
        below = bounds[(indexes - 1).clamp(min=0)]
        above = bounds[indexes.clamp(max=len(bounds) - 1)]
        near_below = (scales <= below * (1 + guard)) & (indexes > 0)
        near_above = (scales >= above * (1 - guard)) & (indexes < len(bounds))
        return indexes + near_above.long() - near_below.long()
