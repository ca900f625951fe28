"""The three coders behind the entropy model's one loop: estimate the bits, write them, read them.

All three see the same calls in the same order (:class:`ugicm.entropy.model.Coder`). A stream's symbols are
rANS-coded with CompressAI's coder, z first, then y as the loop visits it, in one string per image.

**Guard.** Where parsing is done in floating point (not in fixed point), another machine's scales may differ in the
last digits, and one that falls on the other side of a table bound would derail it. Only these comparisons decide
anything, so the writer lists the positions whose scale lies within ``guard`` (relative) of a bound, with the lowest
bit of the row it used, and the reader obeys (the idea of Tian et al., "Towards Real-Time Neural Video Codec for
Cross-Platform Application Using Calibration Information", ACM MM 2023). The list precedes the rANS string: a count,
then for each position a varint, 2 * (distance from the previous listed position) + bit. Fixed-point parsers have
no guard and no list.

**Inside.** An image is padded to multiples of 64 pixels, so some positions of y show nothing of it. The coders are
told how many rows and columns of y do, (rows, columns), and code these alone: elsewhere y_hat is the mean. None: all.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ugicm.bitstream import read_varint, varint
from ugicm.entropy.checkerboard import ALL, Part, pack, unpack
from ugicm.entropy.factorized import BufferedRansEncoder, RansDecoder
from ugicm.entropy.gaussian import TabulatedGaussian
from ugicm.errors import CheckpointError, StreamError

LONGEST = 8  # bytes a symbol: 16 bits and, escaped, 4 of length and up to 28 of value make 6
MARGIN = 256  # words
CLAIM = 5  # bytes a symbol, after a string's end
SYMBOL_LIMIT = 2**26  # the rANS encoder never ends for a symbol of 28 bits or more


def straight_through_round(x: Tensor) -> Tensor:
    """Round to integers; the gradient passes as if it were the identity."""
    return x + (torch.round(x) - x).detach()


@functools.lru_cache(maxsize=64)
def inside_mask(size: torch.Size, part: Part, inside: tuple[int, int]) -> Tensor:
    """Whether positions of a packed ``part`` of ``size`` (h, w) lie in y's first rows and columns; bool [h, w], on the
    CPU."""
    height, width = size
    with torch.inference_mode(False):  # it is kept, and must serve where gradients are computed, too
        mask = torch.zeros(1, 1, height, width if part is ALL else 2 * width, dtype=torch.bool, device="cpu")
        mask[..., : inside[0], : inside[1]] = True
        return pack(mask, part)[0, 0]


def left_out(gaussian: TabulatedGaussian, rows: Tensor, part: Part, inside: tuple[int, int] | None) -> Tensor:
    """Positions of a packed ``part`` that a stream does not hold, their y_hat being the mean; bool, as ``rows`` of the
    table [B, C, h, w]."""
    certain = gaussian.certain(rows)
    if not inside:
        return certain
    return certain | ~inside_mask(rows.shape[2:], part, inside).to(rows.device, non_blocking=True)


class LikelihoodCoder:
    """Collects likelihoods; writes nothing. Differentiable while the parser is in training mode.

    Training follows Minnen & Singh (ICIP 2020): the rate sees y with uniform noise, the rest of the network sees
    y rounded with a straight-through gradient. z is noisy for both: rounded, its small early values would all be
    zero, and the hyperprior would die before it is of use.
    """

    def __init__(self, parser: torch.nn.Module, inside: tuple[int, int] | None = None):
        self.parser, self.inside = parser, inside
        self.z_likelihood: Tensor | None = None
        self._parts: list[tuple[Tensor, Part]] = []

    def code_hyper(self, z: Tensor) -> Tensor:
        noisy, self.z_likelihood = self.parser.bottleneck(z)
        return noisy if self.parser.bottleneck.training else self.parser.round_hyper(z)

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        gaussian = self.parser.gaussian
        y = pack(y, part)
        residual = straight_through_round(y - mean)
        if gaussian.training:
            _, likelihood = gaussian(y, scale, mean)
        else:
            uncoded = left_out(gaussian, gaussian.build_indexes(scale), part, self.inside)
            residual = residual.masked_fill(uncoded, 0)
            likelihood = gaussian.probability(residual, scale).masked_fill(uncoded, 1)
        self._parts.append((likelihood, part))
        return mean + residual

    @property
    def y_likelihood(self) -> Tensor:
        """[B, M, H, W], in the order of y's channels."""
        slices, current = [], None
        for likelihood, part in self._parts:
            full = unpack(likelihood, part)
            if part is Part.ANCHOR:
                current = full
            else:
                slices.append(full if current is None else current + full)
                current = None
        return torch.cat(slices, dim=1)


@dataclass
class CodingTables:
    """A parser's integer CDF tables in the form CompressAI's rANS takes: lists of ints.

    Rows are cut to their own length, since every call converts the whole table.
    """

    cdf: list[list[int]]
    length: list[int]
    offset: list[int]

    @classmethod
    def of(cls, entropy_model: torch.nn.Module) -> CodingTables:
        length = entropy_model.cdf_length.tolist()
        rows = entropy_model.quantized_cdf.tolist()
        return cls([row[:n] for row, n in zip(rows, length)], length, entropy_model.offset.tolist())


class _SymbolCoder:
    """What writing and reading share: tables, and a digest of all symbols that passed."""

    def __init__(self, parser: torch.nn.Module, batch: int, inside: tuple[int, int] | None):
        self.inside = inside
        self.gaussian = parser.gaussian
        self.medians = parser.medians
        self.z_tables, self.y_tables = CodingTables.of(parser.bottleneck), CodingTables.of(parser.gaussian)
        self.guard = parser.guard
        self._position = 0  # of y's current part, counted over the parts of one image
        self._digests = [0] * batch

    def _account(self, image: int, symbols: np.ndarray) -> None:
        self._digests[image] = zlib.crc32(symbols.astype("<i4", copy=False).tobytes(), self._digests[image])

    @property
    def digests(self) -> list[int]:
        """Per image, 16 bits that depend on every symbol: tells a stream parsed right from one parsed wrongly. Known
        when all has been read, or written (:meth:`RansEncoderCoder.flush`)."""
        return [digest & 0xFFFF for digest in self._digests]

    @staticmethod
    def _hyper_rows(shape: tuple[int, int, int]) -> np.ndarray:
        """Table row of every position of z [N, h, w]: its channel. [N * h * w]."""
        return np.repeat(np.arange(shape[0]), shape[1] * shape[2])

    def _choices(self, scale: Tensor) -> Tensor:
        """Table row of every position and, with a guard, the row that another machine may choose there: int16
        [1 or 2, B, C, h, w]."""
        rows = self.gaussian.build_indexes(scale)
        both = [rows, self.gaussian.borderline(scale, rows, self.guard)] if self.guard else [rows]
        return torch.stack(both).to(torch.int16)

    def _rows(self, choices: Tensor, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """From :meth:`_choices`, by now on the CPU: the rows that are used [B, n], and what is coded at all [B, n]."""
        rows, *neighbors = choices.flatten(2).numpy()
        coded = np.ones_like(rows, dtype=bool)
        if self.inside:
            coded &= inside_mask(choices.shape[3:], part, self.inside).expand(choices.shape[2:]).flatten().numpy()
        if self.guard:
            self._settle(rows, np.where(coded, neighbors[0], rows))
        self._position += rows.shape[1]
        if self.gaussian.sparse:
            coded &= rows > 0
        return rows, coded

    def _settle(self, rows: np.ndarray, neighbors: np.ndarray) -> None:
        """Writer: note the borderline rows. Reader: replace rows by the writer's, in place."""
        raise NotImplementedError


class _Pass(NamedTuple):
    """What a writer has to code of one part of one slice, or of z. On its way from a GPU until ``arrived``."""

    symbols: Tensor  # int32 [B, C, h, w]
    fit: Tensor  # whether a stream can hold all of them
    part: Part = ALL
    choices: Tensor | None = None  # None for z
    arrived: torch.cuda.Event | None = None

    def sent(self) -> _Pass:
        """The same on the CPU, without waiting for a GPU to get there."""
        on_gpu = self.symbols.is_cuda
        tensors = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        there = self._replace(**{name: value.to("cpu", non_blocking=on_gpu) for name, value in tensors.items()})
        if not on_gpu:
            return there
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.symbols.device))
        return there._replace(arrived=arrived)


class RansEncoderCoder(_SymbolCoder):
    """Writes: one rANS string per image of the batch.

    Nothing that the networks do depends on the strings, so what a GPU computes is coded in :meth:`flush`: it gets all
    its work without a stop, and the first passes are coded while it is at the others.

    Raises CheckpointError, at any point, for symbols that no stream can hold.
    """

    def __init__(self, parser: torch.nn.Module, batch: int, inside: tuple[int, int] | None = None):
        super().__init__(parser, batch, inside)
        self._encoders = [BufferedRansEncoder() for _ in range(batch)]
        self._listed: list[list[tuple[int, int]]] = [[] for _ in range(batch)]
        self._passes: list[_Pass] = []

    def _settle(self, rows: np.ndarray, neighbors: np.ndarray) -> None:
        for listed, row, neighbor in zip(self._listed, rows, neighbors):
            where = np.flatnonzero(row != neighbor)
            listed.extend(zip((where + self._position).tolist(), (row[where] & 1).tolist()))

    def _take(self, residual: Tensor, *rest: Any) -> None:
        fit = (residual.abs() < SYMBOL_LIMIT).all()  # not so for what is not a number
        one = _Pass(residual.to(torch.int32), fit, *rest).sent()
        if one.arrived:
            self._passes.append(one)
        else:
            self._write(one)

    def code_hyper(self, z: Tensor) -> Tensor:
        residual = torch.round(z - self.medians)
        self._take(residual)
        return residual + self.medians

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        residual = torch.round(pack(y, part) - mean)
        choices = self._choices(scale)
        residual = residual * ~left_out(self.gaussian, choices[0], part, self.inside)
        self._take(residual, part, choices)
        return mean + residual

    def flush(self) -> list[bytes]:
        """The strings, when all has been coded."""
        for one in self._passes:
            one.arrived.synchronize()
            self._write(one)
        strings = [encoder.flush() for encoder in self._encoders]
        if self.guard:
            strings = [self._guard_list(listed) + string for listed, string in zip(self._listed, strings)]
        return strings

    def _write(self, one: _Pass) -> None:
        if not one.fit:
            raise CheckpointError("this model's latents are not finite, or too large for a stream: it is not usable")
        symbols = one.symbols.flatten(1).numpy()
        if one.choices is None:
            rows, coded = np.broadcast_to(self._hyper_rows(one.symbols.shape[1:]), symbols.shape), np.True_
            tables = self.z_tables
        else:
            rows, coded = self._rows(one.choices, one.part)
            tables = self.y_tables
        for image, where in enumerate(np.broadcast_to(coded, symbols.shape)):
            values = symbols[image][where]
            self._account(image, values)
            self._encoders[image].encode_with_indexes(
                values.tolist(), rows[image][where].tolist(), tables.cdf, tables.length, tables.offset
            )

    @staticmethod
    def _guard_list(listed: list[tuple[int, int]]) -> bytes:
        previous, out = 0, [varint(len(listed))]
        for position, bit in listed:
            out.append(varint(2 * (position - previous) + bit))
            previous = position
        return b"".join(out)


class RansDecoderCoder(_SymbolCoder):
    """Reads the strings that :class:`RansEncoderCoder` wrote; ``hyper_size`` is z's height and width.

    The rANS decoder does not check for the end of its string, so zeros are appended to it: a damaged string decodes to
    garbage, in bounded time, and never reads foreign memory. How many it may read: a symbol takes 16 bits at most, as
    long as the state is one that writers leave, from 2^31 on. But an escape says in groups of four bits how many such
    groups its value has, up to 15 in each, and goes on: a string claims up to 15 times its own length in one symbol.
    What the state still holds after the string's end, 63 bits, may do so once more (:data:`MARGIN`). Then zeros follow,
    which are the first symbol of a row, mostly; bits that are random would make 8 groups, 36 bits an escape, and a few
    more for coming to one in tables that have little else (:data:`CLAIM`). A string longer than any writer makes is
    refused: time and memory are bounded by the image.

    Raises StreamError for a guard list that does not end, or a string that is too long or begins as none does.
    """

    def __init__(
        self,
        parser: torch.nn.Module,
        strings: list[bytes],
        hyper_size: tuple[int, int],
        symbols: int,
        inside: tuple[int, int] | None = None,
    ):
        super().__init__(parser, len(strings), inside)
        self.hyper_size = hyper_size
        self._decoders = []
        self._listed: list[tuple[np.ndarray, np.ndarray]] = []
        for string in strings:
            if self.guard:
                string = string[self._read_guard_list(string) :]
            if len(string) > LONGEST * symbols + 4 * MARGIN:
                raise StreamError(f"damaged stream: a string of {len(string)} bytes for {symbols} symbols")
            if not 2**31 <= int.from_bytes(string[:8], "little") < 2**63:
                raise StreamError("damaged stream: a string that begins as no writer's does")
            decoder = RansDecoder()
            decoder.set_stream(string.ljust(16 * len(string) + CLAIM * symbols + 4 * MARGIN, b"\0"))
            self._decoders.append(decoder)

    def _read_guard_list(self, string: bytes) -> int:
        """Take in the guard list at the beginning of a string; returns its length. Raises StreamError."""
        count, end = read_varint(string, 0)
        positions, bits, position = [], [], 0
        for _ in range(count):
            value, end = read_varint(string, end)
            position += value >> 1
            positions.append(position)
            bits.append(value & 1)
        self._listed.append((np.array(positions, dtype=np.int64), np.array(bits, dtype=np.int64)))
        return end

    def _settle(self, rows: np.ndarray, neighbors: np.ndarray) -> None:
        for (positions, bits), row, neighbor in zip(self._listed, rows, neighbors):
            first, last = np.searchsorted(positions, [self._position, self._position + len(row)])
            where, bit = positions[first:last] - self._position, bits[first:last]
            row[where] = np.where(row[where] & 1 == bit, row[where], neighbor[where])

    def _read(self, image: int, rows: np.ndarray, tables: CodingTables) -> np.ndarray:
        values = self._decoders[image].decode_stream(rows.tolist(), tables.cdf, tables.length, tables.offset)
        symbols = np.array(values, dtype=np.int32)
        self._account(image, symbols)
        return symbols

    def code_hyper(self, z: None = None) -> Tensor:
        height, width = self.hyper_size
        channels = self.medians.shape[1]
        rows = self._hyper_rows((channels, height, width))
        symbols = np.stack([self._read(b, rows, self.z_tables) for b in range(len(self._decoders))])
        z = torch.from_numpy(symbols).to(self.medians).view(-1, channels, height, width)
        return z + self.medians

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: None = None) -> Tensor:
        rows, coded = self._rows(self._choices(scale).cpu(), part)
        symbols = np.zeros(rows.shape, dtype=np.int32)
        for image, where in enumerate(coded):
            symbols[image, where] = self._read(image, rows[image][where], self.y_tables)
        return mean + torch.from_numpy(symbols).to(mean.device, mean.dtype).view(mean.shape)
