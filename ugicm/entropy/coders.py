"""The coders that write and read: :class:`Encoder` and :class:`Decoder`.

An image has one string: z, then y in the order of the slice loop, coded by :mod:`ugicm.entropy.ans`. With integer
``indexes``, each slice is one call of the entropy coder. Where scales depend on context, each checkerboard pass is one
call, and a guard list (:mod:`ugicm.entropy.guard`) precedes the string.

**Extent.** An image is padded to multiples of 64 pixels, so that some positions of y show nothing of it. ``extent`` is
the number of rows and columns of y that are coded, (rows, columns); elsewhere y_hat is the mean. None codes all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ugicm.entropy.ans import SymbolDecoder, SymbolEncoder
from ugicm.entropy.checkerboard import ALL, NON_ANCHOR, Part, extent_mask, pack
from ugicm.entropy.guard import GUARD, GuardReader, GuardWriter
from ugicm.entropy.model import Coder, EntropyModel
from ugicm.errors import CheckpointError

USABLE_LIMIT = 2**22  # a model whose symbols reach this is not usable; strings hold larger ones


class Pass(NamedTuple):
    """What one call of the entropy coder covers: z, a slice of y, or one part of it.

    Attributes:
        symbols: [B, C, h, w], integers in floating point.
        rows: table rows, integers of the same shape; None for z, where they are the channels.
        part: of the slice.
        neighbors: rows that another machine may choose, if there is a guard.
    """

    symbols: Tensor
    rows: Tensor | None = None
    part: Part = ALL
    neighbors: Tensor | None = None


class _SymbolCoder(Coder):
    """Common part of encoder and decoder: which positions are coded, with which table rows."""

    def __init__(
        self, entropy_model: EntropyModel, extent: tuple[int, int] | None,
        guards: list[GuardWriter] | list[GuardReader],
    ):  # fmt: skip
        super().__init__(entropy_model, extent)
        self._guards = guards
        self._position = 0  # of the current part, counted over the guarded parts of one image

    def _rows_and_neighbors(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.entropy_model.gaussian.build_indexes(scale)
        return rows, self.entropy_model.gaussian.borderline(scale, rows, GUARD)

    def _settled(self, one: Pass) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of y that are used and which positions are coded, [B, n] each, on the CPU."""
        rows = _flat(one.rows)
        coded = np.ones(rows.shape, dtype=bool)
        if self.extent is not None:
            coded &= extent_mask(one.rows.shape[2:], one.part, self.extent).expand(one.rows.shape[1:]).flatten().numpy()
        if one.neighbors is None:
            return rows, coded & (rows > 0)
        neighbors = np.where(coded, _flat(one.neighbors), rows)
        for guard, own, other in zip(self._guards, rows, neighbors, strict=True):
            guard.settle(own, other, self._position)
        self._position += rows.shape[1]
        return rows, coded


def _flat(x: Tensor) -> np.ndarray:
    """Return integers [B, C, h, w] as an array [B, n] that may be changed."""
    return x.to("cpu", torch.int32, copy=True).flatten(1).numpy()


def _hyper_rows(shape: tuple[int, ...]) -> np.ndarray:
    """Return the table row of every position of z [B, N, h, w]: its channel. [N * h * w]."""
    return np.repeat(np.arange(shape[1]), shape[2] * shape[3])


class Encoder(_SymbolCoder):
    """Write one string per image of the batch.

    The networks do not depend on strings, so that a GPU never waits: symbols are collected in ``passes``, and coded by
    :meth:`flush`.
    """

    def __init__(self, entropy_model: EntropyModel, batch: int, extent: tuple[int, int] | None = None):
        guards = [GuardWriter() for _ in range(batch)] if entropy_model.indexes is None else []
        super().__init__(entropy_model, extent, guards)
        self.passes: list[Pass] = []

    def code_hyper(self, z: Tensor) -> Tensor:
        medians = self.entropy_model.bottleneck.medians
        residual = torch.round(z - medians)
        self.passes.append(Pass(residual))
        return residual + medians

    def code(self, scale: Tensor | None, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        residual = torch.round(pack(y, part) - mean).masked_fill(self._not_coded(part, mean), 0)
        self._keep(residual, part)
        if scale is not None:
            rows, neighbors = self._rows_and_neighbors(scale)
            self.passes.append(Pass(residual, rows, part, neighbors))
        elif part is NON_ANCHOR:
            self.passes.append(Pass(self.residuals[-1], self.rows))
        return mean + residual

    def flush(self) -> tuple[list[bytes], list[int]]:
        """Return strings and digests, after everything has been coded.

        Raises CheckpointError for symbols that no bitstream can hold.
        """
        encoders = [SymbolEncoder() for _ in self.passes[0].symbols]
        for one in self.passes:
            if not bool((one.symbols.abs() < USABLE_LIMIT).all()):  # False for NaN, too
                raise CheckpointError("unusable model: its latents are not finite, or too large for a bitstream")
            if one.rows is None:
                for encoder, symbols in zip(encoders, _flat(one.symbols)):
                    encoder.encode(symbols, _hyper_rows(one.symbols.shape), self.entropy_model.z_tables)
            else:
                for encoder, symbols, rows, coded in zip(encoders, _flat(one.symbols), *self._settled(one)):
                    encoder.encode(symbols[coded], rows[coded], self.entropy_model.y_tables)
        strings = [encoder.flush() for encoder in encoders]
        if self._guards:
            strings = [guard.pack() + string for guard, string in zip(self._guards, strings)]
        return strings, [encoder.digest for encoder in encoders]


class Decoder(_SymbolCoder):
    """Read the strings of :class:`Encoder`.

    With integer ``indexes``, symbols are decoded on the CPU without results of the device, which computes means at the
    same time. Time and memory are bounded by the image.

    Args:
        strings: one per image of the batch.
        hyper_size: height and width of z.

    Raises StreamError for strings that no encoder writes.
    """

    def __init__(
        self, entropy_model: EntropyModel, strings: list[bytes], hyper_size: tuple[int, int],
        extent: tuple[int, int] | None = None,
    ):  # fmt: skip
        guards, self._on_cpu = [], entropy_model
        if entropy_model.indexes is not None:
            self._on_cpu = entropy_model.on_cpu()
        else:
            symbols = 16 * hyper_size[0] * hyper_size[1] * sum(entropy_model.slices.widths)
            guards = [GuardReader(string, symbols) for string in strings]
        super().__init__(entropy_model, extent, guards)
        self.hyper_size = hyper_size
        if guards:
            strings = [string[guard.size :] for guard, string in zip(guards, strings)]
        self._decoders = [SymbolDecoder(string) for string in strings]
        self._hyper: Tensor | None = None  # on the CPU, if that is not where the model is
        self._residual: Tensor | None = None  # of the current slice

    def code_hyper(self, z: None = None) -> Tensor:
        bottleneck = self.entropy_model.bottleneck
        shape = (len(self._decoders), bottleneck.medians.shape[1], *self.hyper_size)
        rows = _hyper_rows(shape)
        symbols = np.stack([decoder.decode(rows, self.entropy_model.z_tables) for decoder in self._decoders])
        residual = torch.from_numpy(symbols).float().view(shape)
        if self._on_cpu is not self.entropy_model:
            self._hyper = self._on_cpu.hyper_context(residual + self._on_cpu.bottleneck.medians)
        return residual.to(bottleneck.medians.device) + bottleneck.medians

    def start_slice(self, k: int, hyper: Tensor) -> None:
        if self.entropy_model.indexes is None:
            return
        self.rows = self._on_cpu.indexes(k, hyper if self._hyper is None else self._hyper, self.energies)
        residual = self._read(Pass(self.rows, self.rows))
        self._finish_slice(residual)
        self._residual = residual.to(hyper.device, non_blocking=True)

    def code(self, scale: Tensor | None, mean: Tensor, part: Part, y: None = None) -> Tensor:
        if scale is None:
            return mean + pack(self._residual, part)
        rows, neighbors = self._rows_and_neighbors(scale)
        return mean + self._read(Pass(scale, rows, part, neighbors)).to(mean.device)

    def _read(self, one: Pass) -> Tensor:
        """Return the symbols of a pass: float32 [B, C, h, w] on the CPU."""
        rows, coded = self._settled(one)
        symbols = np.zeros(rows.shape, dtype=np.float32)
        for values, own, where, decoder in zip(symbols, rows, coded, self._decoders, strict=True):
            values[where] = decoder.decode(own[where], self.entropy_model.y_tables)
        return torch.from_numpy(symbols).view(one.rows.shape)

    def finish(self) -> list[int]:
        """Return the digests of the decoded symbols. Raises StreamError for strings that are not used up."""
        for decoder in self._decoders:
            decoder.finish()
        return [decoder.digest for decoder in self._decoders]
