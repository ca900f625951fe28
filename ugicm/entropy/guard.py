"""Guard list: table rows that must not depend on the machine.

Scales that networks predict from context are floating-point numbers. They may differ in the last digits on another
machine, and a scale that falls on the other side of a table bound would derail the entropy decoder. Only these
comparisons matter. The encoder therefore lists the positions whose scale lies within ``guard`` (relative) of a bound,
with the lowest bit of the row it used, and the decoder follows the list (the idea of Tian et al., "Towards Real-Time
Neural Video Codec for Cross-Platform Application Using Calibration Information", ACM MM 2023).

The list precedes the entropy-coded bytes: a count, then for each position a varint, 2 * (distance from the previous
listed position) + bit. Models whose table rows come from integer networks have no guard and no list.
"""

from __future__ import annotations

import numpy as np

from ugicm.bitstream import read_varint, varint
from ugicm.errors import StreamError

GUARD = 2.0**-16  # relative: several times the differences measured between instruction sets and thread counts


class GuardWriter:
    """The guard list of one string that is being encoded."""

    def __init__(self) -> None:
        self._listed: list[tuple[int, int]] = []

    def settle(self, rows: np.ndarray, neighbors: np.ndarray, start: int) -> None:
        """List the positions where ``rows`` and ``neighbors`` differ; the first has number ``start``."""
        where = np.flatnonzero(rows != neighbors)
        self._listed.extend(zip((where + start).tolist(), (rows[where] & 1).tolist()))

    def pack(self) -> bytes:
        previous, out = 0, [varint(len(self._listed))]
        for position, bit in self._listed:
            out.append(varint(2 * (position - previous) + bit))
            previous = position
        return b"".join(out)


class GuardReader:
    """The guard list at the start of a string for ``symbols`` positions. ``size`` is its length in bytes.

    Raises StreamError if the list does not end, or if its positions do not increase from 0 to ``symbols - 1``, so that
    time and memory are bounded by the image.
    """

    def __init__(self, string: bytes, symbols: int):
        count, self.size = read_varint(string, 0)
        positions, bits, position = [], [], 0
        for number in range(count):
            value, self.size = read_varint(string, self.size)
            position += value >> 1
            if position >= symbols or (number and value < 2):
                raise StreamError(f"corrupt bitstream: entry {number} of its guard list does not point to a new symbol")
            positions.append(position)
            bits.append(value & 1)
        self._positions, self._bits = np.array(positions, dtype=np.int64), np.array(bits, dtype=np.int64)

    def settle(self, rows: np.ndarray, neighbors: np.ndarray, start: int) -> None:
        """Replace ``rows`` by the encoder's, in place; the first position has number ``start``."""
        first, last = np.searchsorted(self._positions, [start, start + len(rows)])
        where, bit = self._positions[first:last] - start, self._bits[first:last]
        rows[where] = np.where(rows[where] & 1 == bit, rows[where], neighbors[where])
