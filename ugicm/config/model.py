"""Configuration of the network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ugicm.errors import ConfigError

BACKBONES = ("compact", "mlicpp", "bmshj2018")  # the last: that hyperprior, which here predicts means, too
LRP_FORMS = ("full", "slim", "none")
PARSING = ("fixed", "float64", "float32")
# A checkpoint brings its own configuration: what it asks for is bounded before anything is built.
WIDEST = 2**14  # channels, and any other size
MOST_PARTS = 128  # slices, blocks, layers
MOST_SCALES = 256  # tabulated
# A table has 12 symbols for each unit of the scale, and probabilities of 16 bits have no room for more than 65,536.
LARGEST_SCALE = 4096


@dataclass(frozen=True)
class ModelConfig:
    """The network's form. The defaults are the compact model; ``MLICPP`` below is the released one.

    Widths that a backbone does not use are ignored by it; the docstring of each class says what it uses.
    """

    backbone: str = "compact"  # one of BACKBONES
    N: int = 128  # width of the hyper latent z; in mlicpp and bmshj2018 also of the transforms
    M: int = 192  # channels of the latent y
    slices: int = 4  # channel groups of y, coded one after another
    slice_widths: tuple[int, ...] = (16, 32, 48, 96)  # channels of each slice; empty: M / slices each
    parameter_widths: tuple[int, ...] = (160, 128)  # hidden widths of the entropy parameter networks
    channel_widths: tuple[int, ...] = ()  # hidden widths of the channel context (mlicpp)
    context_width: int = 64  # output width of each context network (compact)
    hyper_width: int = 160  # channels of the hyper context (compact); the others use 2M
    window: int = 5  # side of the local context's window, odd
    lrp: str = "none"  # latent residual prediction: full | slim | none
    stem_width: int = 0  # mlicpp, bmshj2018: width of the first block of the synthesis; 0: N
    width_8: int = 192  # compact: width of the transforms at 1/8 resolution
    depth_8: int = 4  # compact: blocks at 1/8 resolution
    width_16: int = 256
    depth_16: int = 3
    # compact: the last channels of y, linear transforms of 16x16 pixels: detail for high rates, in a slice of its own
    detail_width: int = 0
    branch_width: int = 0  # compact: inner width of the branches of the synthesis that only machines see; 0: none
    sharpness: float = 0.0  # of images for machines, at quality 0; none at quality 1 (ugicm.models.sharpening)
    beta_frequencies: int = 2  # sin/cos pairs in the preference embedding
    beta_width: int = 64  # width of the preference embedding
    quality_points: int = 6  # trained points of the quality gains; 0: a one-rate model
    scale_levels: int = 64  # entropy coder: number of tabulated scales ...
    scale_min: float = 0.11
    scale_max: float = 64.0  # ... log-spaced between these two
    sparse_coding: bool = True  # nearest tabulated scale; positions on the smallest one are not coded
    parsing: str = "fixed"  # arithmetic that decides symbols: fixed (compact) | float64 | float32

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ConfigError(f"model: {message}")

        require(self.backbone in BACKBONES, f"backbone {self.backbone!r} not found; available: {', '.join(BACKBONES)}")
        require(self.lrp in LRP_FORMS, f"lrp {self.lrp!r} not found; available: {', '.join(LRP_FORMS)}")
        require(self.parsing in PARSING, f"parsing {self.parsing!r} not found; available: {', '.join(PARSING)}")
        require(
            (self.parsing == "fixed") == (self.backbone == "compact"),
            f"parsing {self.parsing!r} does not go with {self.backbone}: compact is fixed, the others are not",
        )
        for name in ("N", "M", "slices", "beta_width", "scale_levels"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("slices", "depth_8", "depth_16", "window", "beta_frequencies", "quality_points"):
            require(0 <= getattr(self, name) <= MOST_PARTS, f"{name} must be from 0 to {MOST_PARTS}, "
                    f"got {getattr(self, name)}")  # fmt: skip
        for name in ("slice_widths", "parameter_widths", "channel_widths"):
            widths = getattr(self, name)
            require(len(widths) <= MOST_PARTS, f"{name} has {len(widths)} entries, may have {MOST_PARTS}")
            require(all(0 < width <= WIDEST for width in widths), f"{name} must lie between 1 and {WIDEST}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int:
                require(0 <= value <= WIDEST, f"{field.name} must be from 0 to {WIDEST}, got {value}")
        if self.slice_widths:
            require(
                len(self.slice_widths) == self.slices and sum(self.slice_widths) == self.M,
                f"slice_widths {list(self.slice_widths)} must be {self.slices} numbers that add up to M = {self.M}",
            )
        else:
            require(self.M % self.slices == 0, f"M = {self.M} is not divisible by slices = {self.slices}")
        require(
            0 <= self.detail_width < self.M and self.detail_width in (0, self.widths[-1]),
            f"detail_width = {self.detail_width} must be 0 or the width of the last slice, {self.widths[-1]}",
        )
        require(self.window % 2 == 1 and self.window > 0, f"window must be odd, got {self.window}")
        require(self.quality_points != 1 and self.quality_points >= 0, "quality_points must be 0 or at least 2")
        require(0 <= self.sharpness <= 4, f"sharpness must be from 0 to 4, got {self.sharpness}")
        require(0 < self.scale_min < self.scale_max <= LARGEST_SCALE,
                f"0 < scale_min < scale_max <= {LARGEST_SCALE} must hold")  # fmt: skip
        require(self.scale_levels <= MOST_SCALES, f"scale_levels must be from 1 to {MOST_SCALES}, "
                f"got {self.scale_levels}")  # fmt: skip
        if self.backbone == "bmshj2018":
            require(self.slices == 1, "bmshj2018 codes the latent in one pass: slices must be 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each slice of y."""
        return self.slice_widths or (self.M // self.slices,) * self.slices

    @property
    def halo(self) -> int:
        """Pixels around a window of an image, farther than analysis, synthesis and sharpening reach; a multiple of 64.
        """
        reach = 120  # the published networks
        if self.backbone == "compact":  # a block reaches one position further, its head another; and to their far edge
            reach = 8 * (self.depth_8 + 1) + 16 * (self.depth_16 + 1)
        return -(-reach // 64) * 64


# The released UG-ICM network (117.78 M parameters).
MLICPP = ModelConfig(
    backbone="mlicpp", N=192, M=320, slices=10, slice_widths=(), channel_widths=(192, 128),
    parameter_widths=(320, 256, 128), lrp="full", beta_frequencies=10, beta_width=512, quality_points=0,
    scale_max=256.0, sparse_coding=False, parsing="float32",
)  # fmt: skip
