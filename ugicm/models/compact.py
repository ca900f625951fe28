"""The compact network: nearly all work at 1/8 resolution or below, for laptops.

Analysis folds 8x8 pixels into channels and works with pointwise and depthwise convolutions at 1/8 and 1/16
resolution; synthesis mirrors it, modulated by the viewer's preference. The parsing side (hyper-synthesis, contexts,
entropy parameters) is made of :mod:`ugicm.models.fixed_point` layers only.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.config import ModelConfig
from ugicm.models.bands import ALL_ROWS, around, assemble, by_bands, in_bands
from ugicm.models.checkerboard import REST, pack_neighbours
from ugicm.models.conditional_decoder import Condition
from ugicm.models.entropy_model import SliceEntropyModel
from ugicm.models.fixed_point import FixedPointActivation, FixedPointConv2d, activation, fixed_point_stack, on_grid
from ugicm.models.layers import Pointwise, full_precision
from ugicm.tiling import Y_STRIDE

FOLD = 8  # pixels folded into channels, each way


def _rectify(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=not torch.is_grad_enabled())


def _plus(update: Tensor, x: Tensor) -> Tensor:
    """x + update, in the memory of ``update`` unless that is of reduced precision."""
    return update.add_(x) if update.dtype == x.dtype else x + update


class PatchBlock(nn.Module):
    """Pointwise, depthwise, pointwise; then a pointwise feed-forward pair; both residual. [B, C, H, W] -> same, or only
    its ``rows``.

    With ``condition_width`` the features between pointwise and depthwise are scaled and shifted per channel by a
    projection of the condition that starts at zero, so an untrained condition has no effect.
    """

    def __init__(self, width: int, condition_width: int = 0):
        super().__init__()
        self.expand = Pointwise(width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.project = Pointwise(width, width)
        self.widen = Pointwise(width, 2 * width)
        self.narrow = Pointwise(2 * width, width)
        self.modulation = None
        if condition_width:
            self.modulation = nn.Linear(condition_width, 2 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Condition | None = None, rows: slice = ALL_ROWS) -> Tensor:
        h = _rectify(self.expand(x))
        if self.modulation is not None and condition is not None:
            scale, shift = condition.project(self.modulation, h.shape[-2:]).to(h.dtype).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        x = _plus(self.project(self.depthwise(h)[:, :, rows]), x[:, :, rows])
        return _plus(self.narrow(_rectify(self.widen(x))), x)


class MachineBranch(nn.Module):
    """What only machines see beside a :class:`PatchBlock`: pointwise down to ``inner`` channels, depthwise, pointwise
    up, times the preference. x [B, C, H, W] and y, the block's result (all or only its ``rows``) -> y with it.

    At preference 0 it adds nothing, so it can be trained alone without any change to the picture for people; an
    untrained one adds nothing at any preference. (A parallel adapter: He et al., "Towards a Unified View of
    Parameter-Efficient Transfer Learning", ICLR 2022; here with a depthwise convolution, for texture.)
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.reduce = Pointwise(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.widen = Pointwise(inner, width)
        nn.init.zeros_(self.widen.weight)
        nn.init.zeros_(self.widen.bias)

    def forward(self, x: Tensor, y: Tensor, condition: Condition, rows: slice = ALL_ROWS) -> Tensor:
        h = _rectify(self.depthwise(_rectify(self.reduce(x)))[:, :, rows])
        return torch.addcmul(y, self.widen(h).float(), condition.preference(h.shape[-2:]))


def run_blocks(
    x: Tensor, blocks: nn.ModuleList, condition: Condition | None = None, branches: nn.ModuleList | None = None
) -> Tensor:
    """One block after the other, each with the branch beside it where there are any. [B, C, H, W] -> same.

    By bands where :func:`by_bands` says so, unless the preference is a map; x may be overwritten then.
    """
    banded = by_bands(x) and (condition is None or condition.level_map is None)
    for block, branch in zip_longest(blocks, branches or ()):

        def both(x: Tensor, rows: slice, block: PatchBlock = block, branch: MachineBranch | None = branch) -> Tensor:
            y = block(x, condition, rows)
            return y if branch is None else branch(x, y, condition, rows)

        x = in_bands(both, x) if banded else both(x, ALL_ROWS)
    return x


class DetailAnalysis(Pointwise):
    """Blocks of 16x16 pixels, [B, 3, H, W] about 0 -> ``width`` linear coefficients each, [B, width, H/16, W/16].

    What the deep transform cannot carry at high rates; see :mod:`ugicm.training.widen` for where it begins.
    """

    def __init__(self, width: int):
        super().__init__(3 * Y_STRIDE**2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pixel_unshuffle(x, Y_STRIDE))


class DetailSynthesis(Pointwise):
    """The way back: coefficients [B, width, H/16, W/16] -> what they add to the picture, [B, 3, H, W]."""

    def __init__(self, width: int):
        super().__init__(width, 3 * Y_STRIDE**2, bias=False)

    def forward(self, y_hat: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(y_hat), Y_STRIDE)


class PatchAnalysis(nn.Module):
    """g_a: picture [B, 3, H, W] in [0, 1] -> y [B, M, H/16, W/16].

    Features between blocks and the last layer stay in float32 under autocast: they carry the sums.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.stem = Pointwise(3 * FOLD**2, config.width_8)
        self.blocks_8 = nn.ModuleList(PatchBlock(config.width_8) for _ in range(config.depth_8))
        self.down = nn.Conv2d(config.width_8, config.width_16, 2, stride=2)
        self.blocks_16 = nn.ModuleList(PatchBlock(config.width_16) for _ in range(config.depth_16))
        self.head = Pointwise(config.width_16, config.M - config.detail_width)
        self.detail = DetailAnalysis(config.detail_width) if config.detail_width else None

    def forward(self, x: Tensor) -> Tensor:

        def blocks(size: int) -> list[int]:
            """Blocks of pixels downwards and across; parts of one, too, so that folding refuses them."""
            return [-(-side // size) for side in x.shape[-2:]]

        def centred(rows: slice, size: int) -> Tensor:
            """The pixels in ``rows`` of blocks of ``size``, about 0."""
            return x[:, :, rows.start * size : rows.stop * size] - 0.5

        h = assemble(lambda rows: self.stem(F.pixel_unshuffle(centred(rows, FOLD), FOLD)), x, *blocks(FOLD))
        h = run_blocks(h, self.blocks_8)
        h = self.down(h).float()
        h = run_blocks(h, self.blocks_16)
        y = full_precision(self.head, h)
        if self.detail is None:
            return y
        detail = assemble(lambda rows: full_precision(self.detail, centred(rows, Y_STRIDE)), x, *blocks(Y_STRIDE))
        return torch.cat([y, detail], dim=1)


class PatchSynthesis(nn.Module):
    """g_s: y_hat [B, M, H/16, W/16] and a condition -> picture [B, 3, H, W], not clamped.

    With ``branch_width`` each block has a :class:`MachineBranch` beside it, which is left out where everyone who
    looks is human. Layers outside of blocks stay in float32 under autocast: in bfloat16 they would take 0.02 dB of the
    best pictures, where the blocks, which only add to float32 sums, take less than 0.01.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.stem = Pointwise(config.M, config.width_16)
        self.blocks_16 = nn.ModuleList(PatchBlock(config.width_16, config.beta_width) for _ in range(config.depth_16))
        self.up = Pointwise(config.width_16, 4 * config.width_8)
        self.blocks_8 = nn.ModuleList(PatchBlock(config.width_8, config.beta_width) for _ in range(config.depth_8))
        self.head = nn.Conv2d(config.width_8, 3 * FOLD**2, 3, padding=1)
        self.detail = DetailSynthesis(config.detail_width) if config.detail_width else None
        inner = config.branch_width
        self.branches_16 = nn.ModuleList(MachineBranch(config.width_16, inner) for _ in self.blocks_16 if inner)
        self.branches_8 = nn.ModuleList(MachineBranch(config.width_8, inner) for _ in self.blocks_8 if inner)

    def forward(self, y_hat: Tensor, condition: Condition) -> Tensor:
        branched = self.training or not condition.human
        h = full_precision(self.stem, y_hat)
        h_16 = run_blocks(h, self.blocks_16, condition, self.branches_16 if branched else None)
        height, width = (2 * side for side in h_16.shape[-2:])

        def larger(rows: slice) -> Tensor:
            return F.pixel_shuffle(full_precision(self.up, h_16[:, :, rows.start // 2 : rows.stop // 2]), 2)

        h = assemble(larger, h_16, height, width, 2)
        h_8 = run_blocks(h, self.blocks_8, condition, self.branches_8 if branched else None)

        def picture(rows: slice) -> Tensor:
            wider, own = around(rows, height)
            below = slice(rows.start * FOLD // Y_STRIDE, rows.stop * FOLD // Y_STRIDE)
            return self._picture(h_8[:, :, wider], own, y_hat[:, :, below])

        return assemble(picture, h_8, height, width, Y_STRIDE // FOLD)

    def _picture(self, h: Tensor, rows: slice, y_hat: Tensor) -> Tensor:
        """The last layers, on ``rows`` of h; y_hat on these rows alone."""
        x = F.pixel_shuffle(full_precision(self.head, h)[:, :, rows], FOLD) + 0.5
        return x if self.detail is None else x + full_precision(self.detail, y_hat[:, -self.detail.in_channels :])


class CompactHyperAnalysis(nn.Module):
    """h_a: y -> z [B, N, H/64, W/64]. Only the writer runs it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(config.M - config.detail_width, config.N, 3, padding=1)  # detail is known from the rest
        self.conv2 = nn.Conv2d(config.N, config.N, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(config.N, config.N, 3, stride=2, padding=1)
        # z must rise above the quantisation noise from the start, or the rate term silences it for good.
        with torch.no_grad():
            self.conv3.weight.mul_(8)

    def forward(self, y: Tensor) -> Tensor:
        y = y[:, : self.conv1.in_channels]
        return self.conv3(activation(self.conv2(activation(self.conv1(y)))))


class CompactHyperSynthesis(nn.Sequential):
    """h_s: z_hat -> hyper context [B, hyper_width, H/16, W/16]."""

    def __init__(self, config: ModelConfig):
        width = config.N
        super().__init__(
            FixedPointConv2d(width, width, 3), FixedPointActivation(),
            FixedPointConv2d(width, 4 * width), nn.PixelShuffle(2), FixedPointActivation(),
            FixedPointConv2d(width, width, 3), FixedPointActivation(),
            FixedPointConv2d(width, 4 * width), nn.PixelShuffle(2), FixedPointActivation(),
            FixedPointConv2d(width, config.hyper_width, 3), FixedPointActivation(),
        )  # fmt: skip

    def forward(self, z_hat: Tensor) -> Tensor:
        return super().forward(on_grid(z_hat))


class CompactSlices(SliceEntropyModel):
    """Contexts by plain convolution: 3x3 over the finished slices, a masked 5x5 over this slice's anchors."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.widths)
        self.reach = config.window // 2
        side = config.window
        taps = side * side // 2  # positions of the other colour in a window around a position
        context, hidden = config.context_width, config.parameter_widths
        past = [sum(self.widths[:k]) for k in range(len(self.widths))]
        self.channel = nn.ModuleList(
            nn.Sequential(FixedPointConv2d(c, context, 3), FixedPointActivation()) if c else nn.Identity()
            for c in past
        )
        self.local = nn.ModuleList(
            nn.Sequential(FixedPointConv2d(taps * c, context), FixedPointActivation()) for c in self.widths
        )
        known = [config.hyper_width + (context if c else 0) for c in past]
        self.anchor_params = nn.ModuleList(
            fixed_point_stack(n, *hidden, 2 * c) for n, c in zip(known, self.widths)
        )
        self.rest_params = nn.ModuleList(
            fixed_point_stack(n + context, *hidden, 2 * c) for n, c in zip(known, self.widths)
        )
        for params in (*self.anchor_params, *self.rest_params):
            nn.init.constant_(params[-1].bias[: len(params[-1].bias) // 2], 1.0)  # start with scale 1

    def past_context(self, k: int, done: list[Tensor]) -> list[Tensor]:
        return [self.channel[k](on_grid(torch.cat(done, dim=1)))] if done else []

    def near_context(self, k: int, done: list[Tensor], anchor: Tensor) -> list[Tensor]:
        return [self.local[k](pack_neighbours(on_grid(anchor), REST, self.reach))]
