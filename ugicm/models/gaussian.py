"""The latent's conditional Gaussian and its tabulated scales."""

from __future__ import annotations

import math

import torch
from compressai.entropy_models import GaussianConditional
from torch import Tensor


def log_spaced(low: float, high: float, levels: int) -> list[float]:
    """``levels`` scales from ``low`` to ``high``, evenly spaced in the logarithm."""
    return torch.exp(torch.linspace(math.log(low), math.log(high), levels)).tolist()


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

    def build_indexes(self, scales: Tensor) -> Tensor:
        """Index of the table row for every scale: int64, same shape. Exact comparisons, no arithmetic."""
        table = self.scale_table.double()
        bounds = (table[:-1] * table[1:]).sqrt() if self.sparse else table[:-1]
        # The bounds are rounded to 20 fractional bits, so that the last bit of a square root decides nothing.
        bounds = torch.round(bounds * 2**20) / 2**20 if self.sparse else bounds
        return torch.bucketize(scales.contiguous(), bounds.to(scales.dtype))
