"""Configuration of models: one class per backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from ugicm.config.schema import Range, Section, check, field_types, require

# A checkpoint contains its own configuration, so sizes are limited before anything is built.
Width = Annotated[int, Range(1, 2**14)]  # number of channels
OptionalWidth = Annotated[int, Range(0, 2**14)]  # 0: the layers are absent
Depth = Annotated[int, Range(0, 128)]  # number of layers, blocks or points
Widths = Annotated[tuple[Width, ...], Range(0, 128)]  # of successive layers or slices
# A CDF table has 12 symbols for each unit of the scale, and 16-bit probabilities have room for 65,536 symbols.
LARGEST_SCALE = 4096.0
Scale = Annotated[float, Range(high=LARGEST_SCALE, above=0)]  # standard deviation of a Gaussian


@dataclass(frozen=True)
class ModelConfig(Section):
    """Fields that all backbones share. The defaults are those of the released networks."""

    backbone: Literal["compact", "mlicpp", "bmshj2018"]
    N: Width = 192  # channels of the hyper latent z; in mlicpp and bmshj2018 also of the transforms
    M: Width = 320  # channels of the latent y
    quality_points: Depth = 0  # trained points of the quality gains; 0: a single-rate model
    scale_levels: Annotated[int, Range(1, 256)] = 64  # number of tabulated scales of the entropy coder ...
    scale_min: Scale = 0.11
    scale_max: Scale = 256.0  # ... log-spaced between these two

    @classmethod
    def variant(cls, values: dict, key: str) -> type[ModelConfig]:
        name = check(field_types(ModelConfig)["backbone"], values.get("backbone", "compact"), f"{key}.backbone")
        return _CLASSES[name]

    def validate(self) -> None:
        require(self.quality_points != 1, "quality_points must be 0 or at least 2, got 1")
        require(self.scale_levels == 1 or self.scale_min < self.scale_max,
                f"scale_min = {self.scale_min} must be below scale_max = {self.scale_max}")  # fmt: skip
        require(sum(self.slice_widths) == self.M,
                f"slice_widths {list(self.slice_widths)} must add up to M = {self.M}")  # fmt: skip

    def row_of_scale(self, scale: float) -> float:
        """Return the table row whose scale is ``scale``: a number from 0 to ``scale_levels - 1``, not rounded."""
        if self.scale_levels == 1:
            return 0.0
        return math.log(scale / self.scale_min) / math.log(self.scale_max / self.scale_min) * (self.scale_levels - 1)

    @property
    def halo(self) -> int:
        """Border in pixels, a multiple of 64, beyond which an image does not influence a window inside it."""
        return 128


@dataclass(frozen=True)
class CompactConfig(ModelConfig):
    """Compact model of this project: probabilities from integer networks, transforms on blocks of pixels.

    The defaults are those of the shipped network.
    """

    backbone: Literal["compact"] = "compact"
    N: Width = 128
    M: Width = 256
    quality_points: Depth = 6
    quality_width: Width = 64  # width of the quality embedding of the synthesis
    scale_max: Scale = 64.0
    slice_widths: Widths = (16, 32, 48, 96, 64)  # channels of each slice of y, coded one after another
    parameter_widths: Widths = (128, 64)  # hidden widths of the networks that predict means
    index_widths: Widths = (128, 64)  # hidden widths of the integer networks that give table rows
    context_width: Width = 48  # output width of each context network
    hyper_width: Width = 128  # channels of the hyper context
    width_8: Width = 192  # width of the transforms at 1/8 resolution
    depth_8: Depth = 4  # blocks at 1/8 resolution
    width_16: Width = 256
    depth_16: Depth = 3
    # Width of the last slice if it holds linear transforms of 16x16 pixels, which add detail at high rates; else 0.
    detail_width: OptionalWidth = 64
    machine_depth: Depth = 4  # blocks of the machine tail; 0: every preference gives the image for human preference

    def validate(self) -> None:
        super().validate()
        last = self.slice_widths[-1]
        require(self.detail_width in (0, last) and self.detail_width < self.M,
                f"detail_width = {self.detail_width} must be 0 or the width of the last slice, {last}")  # fmt: skip

    @property
    def halo(self) -> int:
        # Each block reaches one position further, as do the first and last layers.
        reach = 8 * (self.depth_8 + self.machine_depth + 1) + 16 * (self.depth_16 + 1)
        return 64 * math.ceil(reach / 64)


@dataclass(frozen=True)
class EmbeddingConfig(ModelConfig):
    """Fields of the backbones whose synthesis is conditioned on an embedding of the preference."""

    beta_frequencies: Depth = 10  # sin/cos pairs in the preference embedding
    beta_width: Width = 512  # width of the preference embedding


@dataclass(frozen=True)
class MlicppConfig(EmbeddingConfig):
    """MLIC++. The defaults are the released UG-ICM network (117.78 M parameters)."""

    backbone: Literal["mlicpp"] = "mlicpp"
    slice_widths: Widths = (32,) * 10  # channels of each slice of y, coded one after another
    parameter_widths: Widths = (320, 256, 128)  # hidden widths of the entropy parameter networks
    channel_widths: Widths = (192, 128)  # hidden widths of the channel context
    lrp: Literal["full", "slim"] = "full"  # latent residual prediction: hidden widths of released or later networks
    stem_width: OptionalWidth = 0  # width of the first block of the synthesis; 0: N


@dataclass(frozen=True)
class HyperpriorConfig(EmbeddingConfig):
    """Mean-scale hyperprior with the transforms of bmshj2018 (Ballé et al., 2018)."""

    backbone: Literal["bmshj2018"] = "bmshj2018"

    @property
    def slice_widths(self) -> tuple[int, ...]:
        """Channels of each slice of y: a single slice."""
        return (self.M,)


MLICPP = MlicppConfig()
_CLASSES = {cls.backbone: cls for cls in (CompactConfig, MlicppConfig, HyperpriorConfig)}
