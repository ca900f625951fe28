"""MLIC++'s contexts: what a slice's parameters are predicted from, beyond the hyper context.

Jiang, Yang, Zhai, Ning, Gao, Wang, "MLIC: Multi-Reference Entropy Model for Learned Image Compression"
(ACM MM 2023), and "MLIC++: Linear Complexity Multi-Reference Entropy Modeling" (2023).

All maps are at the latent's resolution, [B, channels, H, W] with H and W even, and C is a slice's channels.
Everything works in float32, in which streams are parsed, and in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.entropy.checkerboard import ANCHOR, REST, keep, pack, unpack
from ugicm.models.layers import Conv2d, DepthwiseConv3x3, Pointwise, conv3x3_stack, pointwise_stack

HEAD_WIDTH = 32  # channels of a head in the attention over finished slices
MASKED = -100.0  # added to the score of a masked pair of positions (not -inf: the reference does the same)


class EntropyParameters(nn.Sequential):
    """All that is known of a position -> scale and mean of its symbols, pointwise.

    [B, in, h, w] -> [B, out, h, w].
    """

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...] = (320, 256, 128)):
        super().__init__(*pointwise_stack(in_channels, *widths, out_channels))


class ChannelContext(nn.Sequential):
    """Finished slices -> their local summary, by 3x3 convolutions. [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...] = (192, 128)):
        super().__init__(*conv3x3_stack(in_channels, *widths, out_channels))


class LatentResidualPrediction(nn.Module):
    """Predict what rounding took away, in (-0.5, 0.5). [B, in, H, W] -> [B, out, H, W].

    Minnen & Singh, "Channel-wise Autoregressive Entropy Models" (ICIP 2020). Form "full" narrows from ``in``
    to ``out`` in four equal steps, as the released networks do; "slim" has hidden widths of 224 and 128, as
    later MLIC++ networks have.
    """

    SLIM_WIDTHS = (224, 128)

    def __init__(self, in_channels: int, out_channels: int, form: str = "full"):
        super().__init__()
        surplus = in_channels - out_channels
        if form == "full":
            widths = (in_channels - surplus // 4, in_channels - surplus // 2, in_channels - surplus * 3 // 4)
        elif form == "slim":
            widths = self.SLIM_WIDTHS
        else:
            raise ValueError(f"form {form!r} not found; available: full, slim")
        self.layers = nn.Sequential(*conv3x3_stack(in_channels, *widths, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.layers(x))


def linear_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention whose cost is linear in the positions: query [B, D, n], key and value [B, D, m] -> [B, D, n].

    Keys are normalized over positions, queries over the channels of a head (Shen et al., "Efficient
    Attention", WACV 2021).
    """
    query, key, value = (t.unflatten(1, (heads, -1)) for t in (query, key, value))
    context = value @ key.softmax(dim=3).transpose(2, 3)
    return (context @ query.softmax(dim=2)).flatten(1, 2)


def _projection(channels: int) -> nn.Sequential:
    return nn.Sequential(Pointwise(channels, channels), DepthwiseConv3x3(channels))


def _depthwise_mlp(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        Pointwise(in_channels, hidden), nn.GELU(), DepthwiseConv3x3(hidden), nn.GELU(),
        Pointwise(hidden, out_channels),
    )  # fmt: skip


class InterContext(nn.Module):
    """Global context across slices: linear attention among all positions of the finished slices.

    [B, dim, H, W] -> [B, out, H, W]. ``out`` is 2C in the reference, which fixes the hidden widths 3C and 4C.
    """

    def __init__(self, dim: int, out_channels: int):
        super().__init__()
        self.heads = next(n for n in range(max(1, dim // HEAD_WIDTH), 0, -1) if dim % n == 0)
        self.query, self.key, self.value = _projection(dim), _projection(dim), _projection(dim)
        middle = out_channels * 3 // 2
        self.fusion = Conv2d(dim, middle, 5)
        self.skip = Pointwise(middle, out_channels)
        self.mlp = _depthwise_mlp(middle, 2 * out_channels, out_channels)

    def forward(self, done: Tensor) -> Tensor:
        query, key, value = (f(done).flatten(2) for f in (self.query, self.key, self.value))
        attended = linear_attention(query, key, value, self.heads)
        h = self.fusion(attended.unflatten(2, done.shape[-2:]))
        return self.skip(h) + self.mlp(h)


class IntraContext(nn.Module):
    """Global context within a slice: a position resembles anchors to which the previous slice likens it.

    Queries are the non-anchors of the previous slice [B, C, H, W], keys its anchors, values the anchors of
    this slice [B, C, H, W] (zero elsewhere) -> [B, 2C, H, W].
    """

    def __init__(self, dim: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = _projection(dim), _projection(dim), _projection(dim)
        self.fusion = Conv2d(dim, 2 * dim, 5)
        self.mlp = _depthwise_mlp(2 * dim, 4 * dim, 2 * dim)

    def forward(self, previous: Tensor, anchor: Tensor) -> Tensor:
        query = pack(self.query(keep(previous, REST)), REST)
        key = pack(self.key(keep(previous, ANCHOR)), ANCHOR)
        value = pack(self.value(anchor), ANCHOR)
        attended = linear_attention(query.flatten(2), key.flatten(2), value.flatten(2), self.heads)
        h = self.fusion(unpack(attended.view_as(query), REST))
        return h + self.mlp(h)


class LocalContext(nn.Module):
    """Attention inside the window around a position, over this slice's anchors.

    anchor [B, C, H, W], zero on non-anchors -> [B, 2C, H, W], computed on the non-anchors (the only ones that
    use it) and zero elsewhere.

    In every window, all positions attend to all. Pairs of two anchors inside the image score as they are,
    all others get -100, so that anchors see anchors only; for the other positions this cancels, and they see
    the whole window.
    """

    def __init__(self, dim: int, window: int = 5, heads: int = 2):
        super().__init__()
        self.window, self.heads = window, heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.position_bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.fusion = nn.Conv2d(dim, 2 * dim, window)
        self.project = nn.Linear(2 * dim, 2 * dim)
        self.mlp_norm = nn.LayerNorm(2 * dim)
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 2 * dim))

    def forward(self, anchor: Tensor) -> Tensor:
        batch, dim, height, width = anchor.shape
        # Heads interleave in the projections: channel c belongs to head c mod heads.
        weight = self.qkv.weight.view(3, -1, self.heads, dim).transpose(1, 2).reshape(3 * dim, dim)
        bias = self.qkv.bias.view(3, -1, self.heads).transpose(1, 2).reshape(3 * dim)
        qkv = F.linear(self.norm(anchor.permute(0, 2, 3, 1)), weight, bias)
        reach = self.window // 2
        qkv = F.pad(qkv, (0, 0, reach, reach, reach, reach)).unflatten(3, (3, self.heads, -1))
        query, key, value = qkv.unbind(3)  # [B, H + 2 reach, W + 2 reach, heads, C / heads]
        # The mask is one more product of query and key: -100 of an anchor with all but anchors. It is left out where
        # the query is no anchor: there it would lower all scores alike.
        is_anchor = _anchors(height, width, reach, qkv)[:, :, None, None].expand(*query.shape[:4], 1)
        query = torch.cat([query * query.shape[-1] ** -0.5, MASKED * is_anchor], dim=4)
        key = torch.cat([key, 1 - is_anchor], dim=4)
        windows = _windows(height, width, self.window, anchor.device)
        # [B, positions of the map, heads, n] -> [B windows, heads, window^2, n]
        query, key, value = (t.flatten(1, 2)[:, windows].flatten(0, 1).transpose(1, 2) for t in (query, key, value))
        # Not PyTorch's fused attention, which is made for long sequences: for 25 positions plain products are quicker.
        scores = query @ key.transpose(2, 3) + self._position_bias()
        attended = (scores.softmax(dim=3) @ value).transpose(1, 2)  # window^2 before heads
        attended = attended.flatten(1).unflatten(0, (batch, -1))
        fusion = self.fusion.weight.unflatten(1, (self.heads, -1)).flatten(3).permute(0, 3, 1, 2).flatten(1)
        h = self.project(F.linear(attended, fusion, self.fusion.bias))
        h = h + self.mlp(self.mlp_norm(h))
        return unpack(h.transpose(1, 2).reshape(batch, 2 * dim, height, width // 2), REST)

    def _position_bias(self) -> Tensor:
        """Bias of every pair of a window's positions, [heads, window^2, window^2]."""
        side = torch.arange(self.window, device=self.position_bias.device)
        row, column = side.repeat_interleave(self.window), side.repeat(self.window)
        offset = (row[:, None] - row + self.window - 1) * (2 * self.window - 1) + column[:, None] - column
        return self.position_bias[offset + self.window - 1].permute(2, 0, 1)


def _anchors(height: int, width: int, reach: int, like: Tensor) -> Tensor:
    """1 at the anchors of a map, 0 elsewhere and on ``reach`` positions around it. [H + 2 reach, W + 2 reach]."""
    row, column = (torch.arange(n, device=like.device) for n in (height, width))
    return F.pad(((row[:, None] + column) % 2).to(like.dtype), (reach, reach, reach, reach))


def _windows(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """The windows around all non-anchors, in the order of ``pack(x, REST)``: [H W / 2, window^2], flat indices into a
    map padded by ``window // 2`` on all sides."""
    row = torch.arange(height, device=device)[:, None]
    column = 2 * torch.arange(width // 2, device=device) + row % 2
    step = torch.arange(window, device=device)
    rows = (row + step)[:, None, :, None]  # in padded coordinates; [H, 1, window, 1]
    columns = (column[..., None] + step)[:, :, None, :]  # [H, W / 2, 1, window]
    return (rows * (width + 2 * (window // 2)) + columns).flatten(2).flatten(0, 1)
