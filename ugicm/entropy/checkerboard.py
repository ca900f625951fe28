"""The two halves of a checkerboard over latent positions.

Anchors are the positions where row + column is odd: (even row, odd column) and (odd row, even column). They are coded
first and are context for the non-anchors (He et al., "Checkerboard Context Model for Efficient Learned Image
Compression", CVPR 2021). A half is *packed* by closing its gaps along the row, so that pointwise layers and the entropy
coder touch only the positions they are used for. Results have the memory format of the arguments.
"""

from __future__ import annotations

import functools
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor


class Part(Enum):
    """Positions that a coding pass covers."""

    ANCHOR = 1  # row + column odd
    NON_ANCHOR = 0  # row + column even
    ALL = -1  # no checkerboard: every position in one pass


ANCHOR, NON_ANCHOR, ALL = Part.ANCHOR, Part.NON_ANCHOR, Part.ALL


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1


def _zeros(x: Tensor, width: int) -> Tensor:
    """Return zeros of x's size [..., H, W] but for the width, in x's memory format."""
    *lead, height, _ = x.shape
    if _is_channels_last(x):
        return x.new_zeros(lead[0], height, width, lead[1]).permute(0, 3, 1, 2)
    return x.new_zeros(*lead, height, width)


def keep(x: Tensor, part: Part) -> Tensor:
    """Return x with zeros outside of ``part``. [B, C, H, W] -> same."""
    if part is ALL:
        return x
    out = _zeros(x, x.shape[-1])
    for row in (0, 1):
        column = (row + part.value) % 2
        out[..., row::2, column::2] = x[..., row::2, column::2]
    return out


def pack(x: Tensor, part: Part) -> Tensor:
    """Return the positions of ``part`` in raster order. [B, C, H, W] (H and W even) -> [B, C, H, W/2]."""
    if part is ALL:
        return x
    rows = [x[..., row::2, (row + part.value) % 2 :: 2] for row in (0, 1)]
    if _is_channels_last(x):
        return torch.stack([row.permute(0, 2, 3, 1) for row in rows], dim=2).flatten(1, 2).permute(0, 3, 1, 2)
    return torch.stack(rows, dim=-2).flatten(-3, -2)


def unpack(packed: Tensor, part: Part) -> Tensor:
    """Invert :func:`pack`; the result is zero outside of ``part``. [B, C, H, W/2] -> [B, C, H, W]."""
    if part is ALL:
        return packed
    out = _zeros(packed, 2 * packed.shape[-1])
    for row in (0, 1):
        out[..., row::2, (row + part.value) % 2 :: 2] = packed[..., row::2, :]
    return out


def pack_neighbors(x: Tensor, part: Part, reach: int) -> Tensor:
    """Return the values of the opposite half around every position of ``part``, concatenated as channels.

    [B, C, H, W] -> [B, T*C, H, W/2], where T counts the offsets (dr, dc), |dr|, |dc| <= ``reach``, with dr + dc odd:
    those that lead from one half of the checkerboard to the other. Values outside of the image are zero. A pointwise
    layer on the result is a checkerboard-masked (2*reach+1)^2 convolution.
    """
    height, width = x.shape[2:]
    opposite = NON_ANCHOR if part is ANCHOR else ANCHOR
    positions = F.pad(pack(x, opposite).permute(0, 2, 3, 1).flatten(1, 2), (0, 0, 0, 1))  # the last one is zero
    taps = positions.index_select(1, _neighbors(height, width, part, reach).to(x.device, non_blocking=True))
    return taps.reshape(len(x), height, width // 2, -1).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _neighbors(height: int, width: int, part: Part, reach: int) -> Tensor:
    """Return, for every position of ``part`` and every offset, the number of the neighbor in the packed opposite half.

    int64 [H * W/2 * T]. Outside of the image it is H * W/2.
    """
    opposite, count = NON_ANCHOR if part is ANCHOR else ANCHOR, height * width // 2
    with torch.inference_mode(False), torch.device("cpu"):
        number = torch.arange(1, count + 1).view(1, 1, height, width // 2)
        padded = F.pad(unpack(number, opposite), (reach, reach, reach, reach))
        taps = [
            pack(padded[..., reach + dr : reach + dr + height, reach + dc : reach + dc + width], part)
            for dr in range(-reach, reach + 1)
            for dc in range(-reach, reach + 1)
            if (dr + dc) % 2
        ]
        return ((torch.stack(taps, dim=4) - 1) % (count + 1)).flatten()


@functools.lru_cache(maxsize=64)
def extent_mask(size: torch.Size, part: Part, extent: tuple[int, int]) -> Tensor:
    """Return which positions of a packed ``part`` of ``size`` (h, w) lie in the first ``extent`` rows and columns.

    bool [h, w], on the CPU.
    """
    height, width = size
    with torch.inference_mode(False):  # cached masks must also serve where gradients are computed
        mask = torch.zeros(1, 1, height, width if part is ALL else 2 * width, dtype=torch.bool, device="cpu")
        mask[..., : extent[0], : extent[1]] = True
        return pack(mask, part)[0, 0]
