"""Context networks of MLIC++: what the parameters of a slice are predicted from, beside the hyper context.

Jiang, Yang, Zhai, Ning, Gao, Wang, "MLIC: Multi-Reference Entropy Model for Learned Image Compression"
(ACM MM 2023), and "MLIC++: Linear Complexity Multi-Reference Entropy Modeling" (2023).

All maps have the resolution of the latent, [B, channels, H, W] with H and W even. C is the number of channels of a
slice.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.entropy.checkerboard import ANCHOR, NON_ANCHOR, keep, pack, unpack
from ugicm.models.layers import Pointwise, conv3x3, depthwise3x3, gelu_stack

HEADS = 2  # of the attention within a slice
HEAD_WIDTH = 32  # channels per head of the attention over finished slices
WINDOW = 5  # side of the local attention window
REACH = WINDOW // 2
MASKED = -100.0  # added to the score of a masked pair of positions; finite as in the reference implementation


class EntropyParameters(nn.Sequential):
    """Predict scale and mean of the symbols at each position from all contexts. [B, in, h, w] -> [B, out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...]):
        super().__init__(*gelu_stack(Pointwise, in_channels, *widths, out_channels))


class ChannelContext(nn.Sequential):
    """Summarize the finished slices locally, by 3x3 convolutions. [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...]):
        super().__init__(*gelu_stack(conv3x3, in_channels, *widths, out_channels))


class LatentResidualPrediction(nn.Module):
    """Predict the rounding error, in (-0.5, 0.5). [B, in, H, W] -> [B, out, H, W].

    Minnen & Singh, "Channel-wise Autoregressive Entropy Models" (ICIP 2020). Form "full" narrows from ``in`` to
    ``out`` in four equal steps, as in the released UG-ICM network. Form "slim" has hidden widths of 224 and 128, as in
    later MLIC++ networks.
    """

    def __init__(self, in_channels: int, out_channels: int, form: Literal["full", "slim"]):
        super().__init__()
        surplus = in_channels - out_channels
        full = (in_channels - surplus // 4, in_channels - surplus // 2, in_channels - surplus * 3 // 4)
        widths = full if form == "full" else (224, 128)
        self.layers = nn.Sequential(*gelu_stack(conv3x3, in_channels, *widths, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.layers(x))


def linear_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention with linear cost in the number of positions: query [B, D, n], key and value [B, D, m] -> [B, D, n].

    Keys are normalized over positions, queries over the channels of a head (Shen et al., "Efficient Attention", WACV
    2021).
    """
    query, key, value = (t.unflatten(1, (heads, -1)) for t in (query, key, value))
    context = value @ key.softmax(dim=3).transpose(2, 3)
    return (context @ query.softmax(dim=2)).flatten(1, 2)


def _projection(channels: int) -> nn.Sequential:
    return nn.Sequential(Pointwise(channels, channels), depthwise3x3(channels))


def _depthwise_mlp(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        Pointwise(in_channels, hidden), nn.GELU(), depthwise3x3(hidden), nn.GELU(),
        Pointwise(hidden, out_channels),
    )  # fmt: skip


class InterContext(nn.Module):
    """Global context across slices: linear attention among all positions of the finished slices.

    [B, dim, H, W] -> [B, out, H, W].
    """

    def __init__(self, dim: int, out_channels: int):
        super().__init__()
        self.heads = next(n for n in range(max(1, dim // HEAD_WIDTH), 0, -1) if dim % n == 0)
        self.query, self.key, self.value = _projection(dim), _projection(dim), _projection(dim)
        middle = out_channels * 3 // 2
        self.fusion = nn.Conv2d(dim, middle, 5, padding=2)
        self.skip = Pointwise(middle, out_channels)
        self.mlp = _depthwise_mlp(middle, 2 * out_channels, out_channels)

    def forward(self, done: Tensor) -> Tensor:
        query, key, value = (f(done).flatten(2) for f in (self.query, self.key, self.value))
        attended = linear_attention(query, key, value, self.heads)
        h = self.fusion(attended.unflatten(2, done.shape[-2:]))
        return self.skip(h) + self.mlp(h)


class IntraContext(nn.Module):
    """Global context within a slice: linear attention from its non-anchors to its anchors.

    Queries are the non-anchors of the previous slice [B, C, H, W], keys its anchors, values the anchors of this slice
    [B, C, H, W] (zero elsewhere) -> [B, 2C, H, W].
    """

    def __init__(self, dim: int):
        super().__init__()
        self.query, self.key, self.value = _projection(dim), _projection(dim), _projection(dim)
        self.fusion = nn.Conv2d(dim, 2 * dim, 5, padding=2)
        self.mlp = _depthwise_mlp(2 * dim, 4 * dim, 2 * dim)

    def forward(self, previous: Tensor, anchor: Tensor) -> Tensor:
        query = pack(self.query(keep(previous, NON_ANCHOR)), NON_ANCHOR)
        key = pack(self.key(keep(previous, ANCHOR)), ANCHOR)
        value = pack(self.value(anchor), ANCHOR)
        attended = linear_attention(query.flatten(2), key.flatten(2), value.flatten(2), HEADS)
        h = self.fusion(unpack(attended.view_as(query), NON_ANCHOR))
        return h + self.mlp(h)


class LocalContext(nn.Module):
    """Attention over the anchors of this slice, within the window around each non-anchor.

    anchor [B, C, H, W], zero on non-anchors -> [B, 2C, H, W], zero on anchors.

    In every window, all positions attend to all. Scores between two anchors inside the image count as they are. All
    others are lowered by 100, so that anchors attend to anchors only. For queries that are not anchors the constant
    cancels, and they attend to the whole window.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.position_bias = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, HEADS))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.fusion = nn.Conv2d(dim, 2 * dim, WINDOW)
        self.project = nn.Linear(2 * dim, 2 * dim)
        self.mlp_norm = nn.LayerNorm(2 * dim)
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 2 * dim))

    def forward(self, anchor: Tensor) -> Tensor:
        batch, dim, height, width = anchor.shape
        # Heads interleave in the projections: channel c belongs to head c mod HEADS.
        weight = self.qkv.weight.view(3, -1, HEADS, dim).transpose(1, 2).reshape(3 * dim, dim)
        bias = self.qkv.bias.view(3, -1, HEADS).transpose(1, 2).reshape(3 * dim)
        qkv = F.linear(self.norm(anchor.permute(0, 2, 3, 1)), weight, bias)
        qkv = F.pad(qkv, (0, 0, REACH, REACH, REACH, REACH)).unflatten(3, (3, HEADS, -1))
        query, key, value = qkv.unbind(3)  # [B, H + 2 REACH, W + 2 REACH, HEADS, C / HEADS]
        # The mask is one more channel of query and key: their product is -100 for an anchor and a non-anchor. It is 0
        # where the query is no anchor, since there it would lower all scores alike.
        is_anchor = _anchors(height, width, qkv)[:, :, None, None].expand(*query.shape[:4], 1)
        query = torch.cat([query * query.shape[-1] ** -0.5, MASKED * is_anchor], dim=4)
        key = torch.cat([key, 1 - is_anchor], dim=4)
        windows = _windows(height, width, anchor.device)
        # [B, positions of the map, HEADS, n] -> [B windows, HEADS, WINDOW^2, n]
        query, key, value = (t.flatten(1, 2)[:, windows].flatten(0, 1).transpose(1, 2) for t in (query, key, value))
        # For 25 positions, plain products are faster than fused attention, which is made for long sequences.
        scores = query @ key.transpose(2, 3) + self._position_bias()
        attended = (scores.softmax(dim=3) @ value).transpose(1, 2)  # WINDOW^2 before HEADS
        attended = attended.flatten(1).unflatten(0, (batch, -1))
        fusion = self.fusion.weight.unflatten(1, (HEADS, -1)).flatten(3).permute(0, 3, 1, 2).flatten(1)
        h = self.project(F.linear(attended, fusion, self.fusion.bias))
        h = h + self.mlp(self.mlp_norm(h))
        return unpack(h.transpose(1, 2).reshape(batch, 2 * dim, height, width // 2), NON_ANCHOR)

    def _position_bias(self) -> Tensor:
        """Return the bias of every pair of positions in a window, [HEADS, WINDOW^2, WINDOW^2]."""
        side = torch.arange(WINDOW, device=self.position_bias.device)
        row, column = side.repeat_interleave(WINDOW), side.repeat(WINDOW)
        offset = (row[:, None] - row + WINDOW - 1) * (2 * WINDOW - 1) + column[:, None] - column
        return self.position_bias[offset + WINDOW - 1].permute(2, 0, 1)


def _anchors(height: int, width: int, like: Tensor) -> Tensor:
    """Return 1 at the anchors of a padded map, 0 elsewhere. [H + 2 REACH, W + 2 REACH]."""
    row, column = (torch.arange(n, device=like.device) for n in (height, width))
    return F.pad(((row[:, None] + column) % 2).to(like.dtype), (REACH, REACH, REACH, REACH))


def _windows(height: int, width: int, device: torch.device) -> Tensor:
    """Return the windows around all non-anchors, in the order of ``pack(x, NON_ANCHOR)``.

    [H W / 2, WINDOW^2], flat indices into a map padded by REACH.
    """
    row = torch.arange(height, device=device)[:, None]
    column = 2 * torch.arange(width // 2, device=device) + row % 2
    step = torch.arange(WINDOW, device=device)
    rows = (row + step)[:, None, :, None]  # in padded coordinates; [H, 1, WINDOW, 1]
    columns = (column[..., None] + step)[:, :, None, :]  # [H, W / 2, 1, WINDOW]
    return (rows * (width + 2 * REACH) + columns).flatten(2).flatten(0, 1)
