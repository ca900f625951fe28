"""The entropy coder: symbols and integer CDF tables to a string of bytes, and back.

Asymmetric numeral systems, by ``constriction``. No other module imports that library, and this one knows nothing of
networks: arrays in, arrays out. ``docs/bitstream.md`` specifies every bit of a string without the library.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from constriction import stream

from ugicm.errors import StreamError

SYMBOL_LIMIT = 2**26  # absolute values of symbols are smaller: an escape of ESCAPE_BYTES reaches so far
ESCAPE_BYTES = 4
_BYTE = stream.model.Uniform(256)
_EXTRA_BITS = 8  # frequencies of the tables have 16 bits, those of the coder 24


class Tables:
    """The CDF tables of a prior in the form that the coder needs.

    Args:
        cdfs: CDF of each row, int [rows, longest row], from 0 to 2^16, strictly increasing; unused entries are ignored.
        lengths: number of used entries of each row, int [rows], at least 3. The last frequency is the escape's.
        offsets: first symbol of each row's range, int [rows].
    """

    def __init__(self, cdfs: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        self._cdfs, self._lengths = cdfs, lengths
        self.sizes = np.asarray(lengths, dtype=np.int32) - 2  # symbols in the range of each row; also escape's index
        self.offsets = np.asarray(offsets, dtype=np.int32)
        self._models: dict[int, stream.model.Categorical] = {}

    def __reduce__(self) -> tuple:
        return Tables, (self._cdfs, self._lengths, self.offsets)  # models can neither be pickled nor copied

    def model(self, row: int) -> stream.model.Categorical:
        """Return the distribution of a row, over indices from its first symbol."""
        if row not in self._models:
            frequencies = np.diff(self._cdfs[row][: self._lengths[row]].astype(np.int64)) << _EXTRA_BITS
            # The library gives each entry a frequency of 1 and shares the rest in proportion: here, without remainder.
            self._models[row] = stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)
        return self._models[row]


def _group(rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Return the order that sorts positions by row, and each row with its part of the sorted positions."""
    order = np.argsort(rows.astype(np.uint16), kind="stable")  # a radix sort
    counts = np.bincount(rows)
    used, ends = np.flatnonzero(counts), np.cumsum(counts)
    return order, [(row, slice(ends[row] - counts[row], ends[row])) for row in used.tolist()]


class SymbolEncoder:
    """Writes one string.

    The coder is a stack, so that everything is kept until :meth:`flush` encodes it from the end.
    """

    def __init__(self) -> None:
        self._crc = 0
        self._steps: list[tuple[np.ndarray, Any]] = []  # arrays and their models, in decoding order

    @property
    def digest(self) -> int:
        """16 bits that depend on all symbols so far: the low half of a CRC-32."""
        return self._crc & 0xFFFF

    def encode(self, symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> None:
        """Append symbols, int32 [n] of absolute values below :data:`SYMBOL_LIMIT`, given their table rows [n]."""
        self._crc = _crc(symbols, self._crc)
        order, groups = _group(rows)
        grouped = rows[order]
        index, size = symbols[order] - tables.offsets[grouped], tables.sizes[grouped]
        escaped = (index < 0) | (index >= size)
        excess = np.where(index < 0, -2 * index - 1, 2 * (index - size))[escaped]
        index[escaped] = size[escaped]
        self._steps.extend((index[part], tables.model(row)) for row, part in groups)
        while len(excess):
            more = excess > 127
            self._steps.append((np.where(more, excess & 127 | 128, excess), _BYTE))
            excess = excess[more] >> 7

    def flush(self) -> bytes:
        """Return the string."""
        coder = stream.stack.AnsCoder()
        for symbols, model in reversed(self._steps):
            coder.encode_reverse(symbols, model)
        # One large number, most significant byte first. The last byte is always 0, since all frequencies are multiples
        # of 256.
        return coder.get_compressed()[::-1].astype(">u4").tobytes().lstrip(b"\0")[:-1]


class SymbolDecoder:
    """Reads a string of :class:`SymbolEncoder`.

    Any bytes decode to some symbols: decoding past the end is harmless and found out by :meth:`finish`. Time and memory
    are bounded by the number of symbols. Raises StreamError for a string that no encoder writes.
    """

    def __init__(self, string: bytes):
        self._crc = 0
        if string[:1] == b"\0":
            raise StreamError("corrupt bitstream: a string starts with a zero byte")
        number = string + b"\0" if string else b""
        words = np.frombuffer(number.rjust(-(-len(number) // 4) * 4, b"\0"), dtype=">u4")
        self._coder = stream.stack.AnsCoder(words[::-1].astype(np.uint32))

    @property
    def digest(self) -> int:
        """The encoder's digest, if the symbols so far are the same."""
        return self._crc & 0xFFFF

    def decode(self, rows: np.ndarray, tables: Tables) -> np.ndarray:
        """Return the symbols of one :meth:`SymbolEncoder.encode`, int32 [n], given their table rows [n].

        Raises StreamError for an escape that does not end.
        """
        order, groups = _group(rows)
        grouped = rows[order]
        index = np.empty(len(rows), dtype=np.int32)
        for row, part in groups:
            index[part] = self._coder.decode(tables.model(row), part.stop - part.start)
        size = tables.sizes[grouped]
        (escaped,) = np.nonzero(index == size)
        if len(escaped):
            excess = self._decode_excess(len(escaped))
            index[escaped] = np.where(excess & 1, -1 - (excess >> 1), size[escaped] + (excess >> 1))
        symbols = np.empty_like(index)
        symbols[order] = index + tables.offsets[grouped]
        self._crc = _crc(symbols, self._crc)
        return symbols

    def _decode_excess(self, count: int) -> np.ndarray:
        """Return how far ``count`` escaped symbols lie outside of their ranges: distance and side, int32 [count]."""
        excess, unfinished = np.zeros(count, dtype=np.int32), np.arange(count)
        for step in range(ESCAPE_BYTES):
            byte = self._coder.decode(_BYTE, len(unfinished))
            excess[unfinished] |= (byte & 127) << 7 * step
            unfinished = unfinished[byte > 127]
            if not len(unfinished):
                return excess
        raise StreamError(f"corrupt bitstream: an escape of more than {ESCAPE_BYTES} bytes")

    def finish(self) -> None:
        """Raise StreamError unless the string is used up exactly."""
        if not self._coder.is_empty():
            raise StreamError("corrupt bitstream: a string does not end with its last symbol")


def _crc(symbols: np.ndarray, crc: int) -> int:
    return zlib.crc32(symbols.astype("<i4", copy=False).tobytes(), crc)
