"""Computation by bands of rows, so that intermediate features stay in the CPU cache.

A band is computed together with one row above and one row below, the reach of a 3x3 convolution. The result equals
that of the whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ALL_ROWS = slice(None)
BAND = 4096  # positions per band


def by_bands(x: Tensor) -> bool:
    """Return whether to compute by bands: on the CPU, without gradients, and not while a graph is exported."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def bands(height: int, width: int, multiple: int = 1, positions: int | None = None) -> Iterator[slice]:
    """Yield the rows of each band of a map, about ``positions`` (default :data:`BAND`) positions per band.

    Bands start at multiples of ``multiple``.
    """
    count = -(-height * width // (positions or BAND))
    step = -(-height // (count * multiple)) * multiple
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def around(rows: slice, height: int) -> tuple[slice, slice]:
    """Return the rows of a band and its neighboring rows, and the position of the band among these."""
    first = max(rows.start - 1, 0)
    return slice(first, min(rows.stop + 1, height)), slice(rows.start - first, rows.stop - first)


def assemble(piece: Callable[[slice], Tensor], like: Tensor, height: int, width: int, multiple: int = 1) -> Tensor:
    """Return ``piece(rows)`` for all rows of a map [height, width], in float32.

    A piece is [B, C, n, W], with n proportional to the number of rows. It is computed by :func:`bands` if
    :func:`by_bands` holds for ``like``, else in one call.
    """
    if not by_bands(like):
        return piece(slice(0, height)).float()
    result, top = None, 0
    for rows in bands(height, width, multiple):
        part = piece(rows)
        batch, channels, count, across = part.shape
        if rows.stop - rows.start == height:
            return part.float()
        if result is None:
            down = count * height // (rows.stop - rows.start)
            result = part.new_empty(batch, down, across, channels, dtype=torch.float32).permute(0, 3, 1, 2)
        result[:, :, top : top + count] = part
        top += count
    return result


def in_bands(block: Callable[[Tensor, slice], Tensor], x: Tensor, positions: int | None = None) -> Tensor:
    """Return ``block(x, ALL_ROWS)`` [B, C, H, W], computed by :func:`bands` in the memory of x.

    ``block(x, rows)`` returns the result on ``rows`` of x [B, C, H, W] and depends on one row more above and below.
    """
    height, width = x.shape[-2:]
    if height * width <= (positions or BAND):
        return block(x, ALL_ROWS)
    before = None  # result of the previous band, written late: the next band depends on the rows it replaces
    for rows in bands(height, width, positions=positions):
        wider, own = around(rows, height)
        result = block(x[:, :, wider], own)
        if before is not None:
            x[:, :, before[0]] = before[1]
        before = rows, result
    x[:, :, before[0]] = before[1]
    return x
