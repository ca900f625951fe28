"""The two halves of a checkerboard over latent positions.

Anchors are the positions where row + column is odd: (even row, odd column) and (odd row, even column).
They are coded first; the rest sees them as context (He et al., "Checkerboard Context Model for Efficient
Learned Image Compression", CVPR 2021). A half is *packed* by closing its gaps along the row, so that
pointwise layers and the entropy coder touch only the positions they are used for. Results are in memory as their
arguments are, channels last or not.
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor


class Part(Enum):
    """Which positions a coding pass covers."""

    ANCHOR = 1  # row + column odd
    REST = 0  # row + column even
    ALL = -1  # no checkerboard: every position in one pass


ANCHOR, REST, ALL = Part.ANCHOR, Part.REST, Part.ALL


def _channels_last(x: Tensor) -> bool:
    """Whether x [B, C, H, W] has its channels side by side in memory."""
    return x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1


def _zeros(x: Tensor, width: int) -> Tensor:
    """Of x's size [..., H, W] but for the width, in x's order in memory."""
    *lead, height, _ = x.shape
    if _channels_last(x):
        return x.new_zeros(lead[0], height, width, lead[1]).permute(0, 3, 1, 2)
    return x.new_zeros(*lead, height, width)


def keep(x: Tensor, part: Part) -> Tensor:
    """[B, C, H, W] -> the same, zero outside ``part``."""
    if part is ALL:
        return x
    out = _zeros(x, x.shape[-1])
    for row in (0, 1):
        column = (row + part.value) % 2
        out[..., row::2, column::2] = x[..., row::2, column::2]
    return out


def pack(x: Tensor, part: Part) -> Tensor:
    """[B, C, H, W] (H and W even) -> [B, C, H, W/2], the positions of ``part`` in raster order."""
    if part is ALL:
        return x
    rows = [x[..., row::2, (row + part.value) % 2 :: 2] for row in (0, 1)]
    if _channels_last(x):
        return torch.stack([row.permute(0, 2, 3, 1) for row in rows], dim=2).flatten(1, 2).permute(0, 3, 1, 2)
    return torch.stack(rows, dim=-2).flatten(-3, -2)


def unpack(packed: Tensor, part: Part) -> Tensor:
    """[B, C, H, W/2] -> [B, C, H, W], zero outside ``part``. The inverse of :func:`pack` on ``part``."""
    if part is ALL:
        return packed
    out = _zeros(packed, 2 * packed.shape[-1])
    for row in (0, 1):
        out[..., row::2, (row + part.value) % 2 :: 2] = packed[..., row::2, :]
    return out


def pack_neighbors(x: Tensor, part: Part, reach: int) -> Tensor:
    """The opposite half's values around every position of ``part``, side by side as channels.

    x [B, C, H, W] -> [B, T*C, H, W/2], where T counts the offsets (dr, dc), |dr|, |dc| <= ``reach``, with
    dr + dc odd: exactly those that lead from one half of the checkerboard to the other. Outside the image
    the values are zero. A pointwise layer on the result is a checkerboard-masked (2*reach+1)^2 convolution.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (reach, reach, reach, reach))
    taps = [
        pack(padded[..., reach + dr : reach + dr + height, reach + dc : reach + dc + width], part)
        for dr in range(-reach, reach + 1)
        for dc in range(-reach, reach + 1)
        if (dr + dc) % 2
    ]
    return torch.cat(taps, dim=1)
