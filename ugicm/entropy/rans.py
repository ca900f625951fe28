"""The coders that write and read: rANS encoder and decoder.

Symbols are coded with CompressAI's rANS coder, z first, then y in the order of the slice loop, in one string per image.
Where the entropy model has a guard, a guard list (:mod:`ugicm.entropy.guard`) precedes each string.

**Extent.** An image is padded to multiples of 64 pixels, so that some positions of y show nothing of it. ``extent`` is
the number of rows and columns of y that are coded, (rows, columns); elsewhere y_hat is the mean. None codes all.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import zlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ugicm.entropy.checkerboard import ALL, Part, extent_mask, pack
from ugicm.entropy.guard import GuardReader, GuardWriter
from ugicm.entropy.model import EntropyModel
from ugicm.entropy.tables import CodingTables
from ugicm.errors import CheckpointError, StreamError

LONGEST = 8  # bytes per symbol: 16 bits and, escaped, 4 of length and up to 28 of value make 6
MARGIN = 256  # words
CLAIM = 5  # bytes per symbol, after a string's end
SYMBOL_LIMIT = 2**26  # the rANS encoder never ends for a symbol of 28 bits or more


def _load_rans() -> ModuleType:
    """Load CompressAI's rANS extension alone: importing the package takes longer than compressing an image.

    ``sys.modules`` stays as it is, so that the package can be imported later.
    """
    name = "compressai.ans"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("compressai")
    spec = package and importlib.machinery.PathFinder.find_spec(name, package.submodule_search_locations)
    if spec is None:
        raise ImportError("the rANS coder is missing: pip install compressai")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop(name, None)  # extensions enter themselves
    return module


ans = _load_rans()


class _SymbolCoder:
    """Common part of encoder and decoder: tables, table rows, and digests of all symbols."""

    def __init__(
        self, entropy_model: EntropyModel, guards: list[GuardWriter] | list[GuardReader], batch: int,
        extent: tuple[int, int] | None,
    ):  # fmt: skip
        self.extent = extent
        self.gaussian = entropy_model.gaussian
        self.medians = entropy_model.bottleneck.medians
        self.z_tables, self.y_tables = entropy_model.bottleneck.coding_tables(), entropy_model.gaussian.coding_tables()
        self.guard, self._guards = entropy_model.guard, guards
        self._position = 0  # of y's current part, counted over the parts of one image
        self._digests = [0] * batch

    def _account(self, image: int, symbols: np.ndarray) -> None:
        self._digests[image] = zlib.crc32(symbols.astype("<i4", copy=False).tobytes(), self._digests[image])

    @property
    def digests(self) -> list[int]:
        """16 bits per image that depend on every symbol. A different digest means wrong symbols.

        Complete when everything is decoded, or encoded (:meth:`RansEncoder.flush`).
        """
        return [digest & 0xFFFF for digest in self._digests]

    @staticmethod
    def _hyper_rows(shape: tuple[int, int, int]) -> np.ndarray:
        """Return the table row of every position of z [N, h, w]: its channel. [N * h * w]."""
        return np.repeat(np.arange(shape[0]), shape[1] * shape[2])

    def _choices(self, scale: Tensor) -> Tensor:
        """Return the table row of every position and, with a guard, the row that another machine may choose.

        int16 [1 or 2, B, C, h, w].
        """
        rows = self.gaussian.build_indexes(scale)
        both = [rows, self.gaussian.borderline(scale, rows, self.guard)] if self.guard else [rows]
        return torch.stack(both).to(torch.int16)

    def _rows(self, choices: Tensor, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that are used [B, n] and which positions are coded [B, n], given choices on the CPU."""
        rows, *neighbors = choices.flatten(2).numpy()
        coded = np.ones_like(rows, dtype=bool)
        if self.extent:
            coded &= extent_mask(choices.shape[3:], part, self.extent).expand(choices.shape[2:]).flatten().numpy()
        if self.guard:
            for image, guard in enumerate(self._guards):
                neighbor = np.where(coded[image], neighbors[0][image], rows[image])
                guard.settle(rows[image], neighbor, self._position)
        self._position += rows.shape[1]
        if self.gaussian.sparse:
            coded &= rows > 0
        return rows, coded


class _Pass(NamedTuple):
    """What the encoder codes of z, or of one part of one slice. Being copied from a GPU until ``arrived``."""

    symbols: Tensor  # int32 [B, C, h, w]
    fit: Tensor  # whether a bitstream can hold all of them
    part: Part = ALL
    choices: Tensor | None = None  # None for z
    arrived: torch.cuda.Event | None = None

    def to_cpu(self) -> _Pass:
        """Return the same on the CPU. Does not wait for a GPU."""
        on_gpu = self.symbols.is_cuda
        tensors = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        moved = self._replace(**{name: value.to("cpu", non_blocking=on_gpu) for name, value in tensors.items()})
        if not on_gpu:
            return moved
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.symbols.device))
        return moved._replace(arrived=arrived)


class RansEncoder(_SymbolCoder):
    """A coder (:class:`ugicm.entropy.model.Coder`) that writes one rANS string per image of the batch.

    The networks do not depend on the strings. What a GPU computes is therefore coded in :meth:`flush`: the GPU gets all
    its work without a stop, and the first passes are coded while it works on the others.

    Raises CheckpointError, at any point, for symbols that no bitstream can hold.
    """

    def __init__(self, entropy_model: EntropyModel, batch: int, extent: tuple[int, int] | None = None):
        super().__init__(entropy_model, [GuardWriter() for _ in range(batch)], batch, extent)
        self._encoders = [ans.BufferedRansEncoder() for _ in range(batch)]
        self._passes: list[_Pass] = []

    def _take(self, residual: Tensor, *rest: Any) -> None:
        fit = (residual.abs() < SYMBOL_LIMIT).all()  # False for NaN, too
        one = _Pass(residual.to(torch.int32), fit, *rest).to_cpu()
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
        residual = residual * ~self.gaussian.not_coded(choices[0], part, self.extent)
        self._take(residual, part, choices)
        return mean + residual

    def flush(self) -> list[bytes]:
        """Return the strings, after everything has been coded."""
        for one in self._passes:
            one.arrived.synchronize()
            self._write(one)
        strings = [encoder.flush() for encoder in self._encoders]
        return [guard.pack() + string for guard, string in zip(self._guards, strings)] if self.guard else strings

    def _write(self, one: _Pass) -> None:
        if not one.fit:
            raise CheckpointError("unusable model: its latents are not finite, or too large for a bitstream")
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
            self._encoders[image].encode_with_indexes(values.tolist(), rows[image][where].tolist(), *tables)


class RansDecoder(_SymbolCoder):
    """A coder (:class:`ugicm.entropy.model.Coder`) that reads the strings of :class:`RansEncoder`.

    CompressAI's rANS decoder does not check for the end of its string, so zeros are appended: a corrupt string decodes
    to garbage in bounded time and never reads memory outside of the buffer. Its length covers what decoding can reach:

    - A symbol takes 16 bits at most, given an initial state that an encoder can leave: 2^31 or more.
    - An escape stores in groups of four bits how many such groups its value has, up to 15 per group. A string thus
      claims up to 15 times its own length in one symbol.
    - The state's 63 bits may do so once more after the string's end (:data:`MARGIN`).
    - The zeros that follow mostly decode to the first symbol of a row. Random bits would make 8 groups, 36 bits per
      escape, and a few more to reach an escape in tables that have little else (:data:`CLAIM`).

    A string longer than any encoder writes is rejected: time and memory are bounded by the image.

    Args:
        strings: one per image of the batch.
        hyper_size: height and width of z.
        symbols: number of symbols per image, coded or not.

    Raises StreamError for a guard list that does not end, a string that is too long, or one with an invalid start.
    """

    def __init__(
        self,
        entropy_model: EntropyModel,
        strings: list[bytes],
        hyper_size: tuple[int, int],
        symbols: int,
        extent: tuple[int, int] | None = None,
    ):
        guards = [GuardReader(string) for string in strings] if entropy_model.guard else []
        super().__init__(entropy_model, guards, len(strings), extent)
        self.hyper_size = hyper_size
        if guards:
            strings = [string[guard.size :] for guard, string in zip(guards, strings)]
        self._decoders = []
        for string in strings:
            if len(string) > LONGEST * symbols + 4 * MARGIN:
                raise StreamError(f"corrupt bitstream: a string of {len(string)} bytes for {symbols} symbols")
            if not 2**31 <= int.from_bytes(string[:8], "little") < 2**63:
                raise StreamError("corrupt bitstream: a string starts with an invalid rANS state")
            decoder = ans.RansDecoder()
            decoder.set_stream(string.ljust(16 * len(string) + CLAIM * symbols + 4 * MARGIN, b"\0"))
            self._decoders.append(decoder)

    def _read(self, image: int, rows: np.ndarray, tables: CodingTables) -> np.ndarray:
        values = self._decoders[image].decode_stream(rows.tolist(), *tables)
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
