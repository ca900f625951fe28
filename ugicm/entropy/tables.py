"""Integer CDF tables for the entropy coder.

A table has one row per distribution. A row covers a range of symbols around zero and ends with an escape, which stands
for all symbols outside of the range. Tables are integers and part of a checkpoint: they are built once, where a model
is made, and never recomputed where a bitstream is read.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ugicm.entropy.ans import Tables
from ugicm.entropy.lower_bound import LowerBound
from ugicm.errors import CheckpointError

PRECISION = 16  # bits: frequencies of a row sum to 2^16
LIKELIHOOD_BOUND = 1e-9
TAIL_MASS = 1e-9  # probability outside of a row's range, about
TABLES = ("_offset", "_quantized_cdf", "_cdf_length")  # buffers of TabulatedPrior


def quantize_cdf(pmf: Tensor) -> Tensor:
    """Convert probabilities [n], on the CPU, to an integer CDF: int32 [n + 1], strictly increasing from 0 to 2^16.

    Every symbol gets a frequency of at least 1, at the expense of the least frequent symbols that can spare one. The
    arithmetic is that of CompressAI, so that the same probabilities give the same table.

    Raises CheckpointError for values that are no probabilities.
    """
    total = 2**PRECISION
    frequency = (pmf.float().double() * total + 0.5).floor()
    if not bool(((frequency >= 0) & frequency.isfinite()).all() & frequency.any()):
        raise CheckpointError("CDF tables cannot be built: the probabilities of a prior are not finite or all zero")
    frequency = frequency.long()
    frequency = frequency * total // frequency.sum()
    frequency[-1] += total - frequency.sum()
    spare = [(f, symbol) for symbol, f in enumerate(frequency.tolist()) if f > 1]
    heapq.heapify(spare)
    for symbol in (frequency == 0).nonzero().flatten().tolist():
        least, giver = spare[0]
        frequency[giver], frequency[symbol] = least - 1, 1
        heapq.heapreplace(spare, (least - 1, giver)) if least > 2 else heapq.heappop(spare)
    return nn.functional.pad(frequency.cumsum(0), (1, 0)).to(torch.int32)


class TabulatedPrior(nn.Module):
    """A prior with integer CDF tables.

    Buffers have the names and the layout of CompressAI's entropy models. They are empty until tables are built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_BOUND)
        self.drop_tables()

    @property
    def quantized_cdf(self) -> Tensor:
        """CDF of each row, int32 [rows, longest row]; unused entries are 0."""
        return self._quantized_cdf

    @property
    def cdf_length(self) -> Tensor:
        """Number of used entries of each row, int32 [rows]: symbols in its range + 2."""
        return self._cdf_length

    @property
    def offset(self) -> Tensor:
        """First symbol of each row's range, int32 [rows]."""
        return self._offset

    @property
    def has_tables(self) -> bool:
        return self._quantized_cdf.numel() > 0

    def set_tables(self, rows: Sequence[Tensor], offset: Tensor) -> None:
        """Set the tables from the probabilities of each row, the escape's last, and the first symbol of each row."""
        cdfs = [quantize_cdf(row.cpu()) for row in rows]
        self._offset = offset.to(torch.int32)
        self._cdf_length = self._offset.new_tensor([len(cdf) for cdf in cdfs])
        self._quantized_cdf = nn.utils.rnn.pad_sequence(cdfs, batch_first=True).to(self._offset.device)

    def coding_tables(self) -> Tables:
        """Return the tables in the form that the entropy coder takes."""
        return Tables(*(table.cpu().numpy() for table in (self.quantized_cdf, self.cdf_length, self.offset)))

    def drop_tables(self) -> None:
        """Remove the tables, for a prior whose parameters are about to change."""
        for name in TABLES:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))
