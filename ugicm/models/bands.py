"""Layers over a map some rows at a time, so that what lies between them stays in the cache of a processor.

A band is computed with the row above and the row below it, as far as 3x3 convolutions reach, so that the result is
that of the whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ALL_ROWS = slice(None)
BAND = 4096  # positions of a band


def by_bands(x: Tensor) -> bool:
    """Whether to work band by band: on a processor, outside training."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def bands(height: int, width: int, multiple: int = 1, positions: int | None = None) -> Iterator[slice]:
    """Rows of a map, cut into bands of about that many positions (None: :data:`BAND`), which begin at multiples of
    ``multiple``."""
    count = -(-height * width // (positions or BAND))
    step = -(-height // (count * multiple)) * multiple
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def around(rows: slice, height: int) -> tuple[slice, slice]:
    """A band with the rows next to it, and where the band's own are among these."""
    first = max(rows.start - 1, 0)
    return slice(first, min(rows.stop + 1, height)), slice(rows.start - first, rows.stop - first)


def assemble(piece: Callable[[slice], Tensor], like: Tensor, height: int, width: int, multiple: int = 1) -> Tensor:
    """``piece(rows)`` for all rows of a map [height, width], in float32. A piece is [B, C, n, W], n in a fixed
    proportion to its rows. By :func:`bands`, which begin at multiples of ``multiple``, where ``like`` is as
    :func:`by_bands` asks."""
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
    """``block(x, all rows)``, computed in the memory of x by :func:`bands` of ``positions``. [B, C, H, W] -> same.

    ``block(x, rows)`` gives the result on ``rows`` of its input, and reaches one row further, above and below.
    """
    height, width = x.shape[-2:]
    if height * width <= (positions or BAND):
        return block(x, ALL_ROWS)
    before = None  # the last band's result: the next one still needs what x held there
    for rows in bands(height, width, positions=positions):
        wider, own = around(rows, height)
        result = block(x[:, :, wider], own)
        if before is not None:
            x[:, :, before[0]] = before[1]
        before = rows, result
    x[:, :, before[0]] = before[1]
    return x
