"""Detectors of torchvision that find objects in images, by name or with local weights.

``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2=PATH``,
``fasterrcnn_resnet50_fpn=PATH:classes=names.txt``. Options: ``num_classes=N`` (background counted) and
``classes=FILE`` (their names, one a line, background left out) for weights trained on other things than
COCO; names with dots set attributes of inner modules (``roi_heads.score_thresh=0.05``,
``transform.min_size=640``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torchvision
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import load_state, read_state
from ugicm.errors import ConfigError, first_of
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.specs import Spec, parse_spec, set_attributes
from ugicm.evaluation.tasks.hub import downloaded
from ugicm.evaluation.tasks.zero_shot import read_classes

_HEAD = "roi_heads.box_predictor.cls_score.bias"
# PASCAL VOC's names for what COCO calls otherwise.
SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


@dataclass
class Detector:
    """A network from images to boxes. ``categories``: name of every label it gives (0 is background), or
    None where nobody said."""

    name: str
    model: nn.Module
    categories: list[str] | None
    labels: int
    device: str
    origin: str

    @property
    def has_masks(self) -> bool:
        return getattr(getattr(self.model, "roi_heads", None), "mask_head", None) is not None

    @cached_property
    def identity(self) -> str:
        # A report's cache may hold what was found in batches, before.
        return f"{self.origin} weights {digest_of(self.model)} one image at a time"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """uint8 images [3, H, W] -> per image boxes [n, 4] (x0, y0, x1, y1), labels, scores, and masks
        [n, 1, H, W] in [0, 1] where it has them; on the CPU."""
        # One at a time: torchvision pads a batch to its largest image, and so what is found in an image would
        # depend on those beside it.
        found = [self.model([image.to(self.device).float() / 255])[0] for image in images]
        return [{key: value.cpu() for key, value in one.items()} for one in found]

    def translate(self, categories: dict[int, str], where: str) -> dict[int, int]:
        """Its labels -> ids of a data set's categories, matched by name (or by order, where labels have no
        names and there are as many).

        Raises ConfigError naming the categories it does not know.
        """
        if self.categories is None:
            if self.labels != len(categories) + 1:
                raise ConfigError(
                    f"{self.name} gives {self.labels - 1} labels without names and {where} has {len(categories)} "
                    "categories; name the labels with :classes=FILE"
                )
            return dict(enumerate(sorted(categories), start=1))
        labels = {_plain(name): label for label, name in enumerate(self.categories) if name != "N/A"}
        unknown = [name for name in categories.values() if _plain(name) not in labels]
        if unknown:
            raise ConfigError(f"{where}: {self.name} does not know the categories {first_of(unknown)}")
        return {labels[_plain(name)]: id for id, name in categories.items()}


def load_detector(text: str = "maskrcnn_resnet50_fpn", device: str = "cpu") -> Detector:
    """The detector that a specification names.

    Raises ConfigError for an unknown name or option, CheckpointError for weights that cannot be had or do
    not fit.
    """
    spec = parse_spec(text)
    name = spec.name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in known:
        raise ConfigError(f"{text}: torchvision has no detector '{name}'; available: {', '.join(known)}")
    catalog = torchvision.models.get_model_weights(name)
    if spec.where is None or spec.where in catalog.__members__:
        spec.take(attributes=True)
        preset = catalog[spec.where] if spec.where else catalog.DEFAULT
        model = downloaded(
            lambda: torchvision.models.get_model(name, weights=preset), spec, f"its weights {preset.name}"
        )
        categories, labels = list(preset.meta["categories"]), len(preset.meta["categories"])
    else:
        model, categories, labels = _from_file(spec, name, catalog)
    set_attributes(model, spec.attributes, text)
    origin = f"torchvision {name}{spec.changes}"
    return Detector(spec.label, model.eval().to(device), categories, labels, device, origin)


def _from_file(spec: Spec, name: str, catalog) -> tuple[nn.Module, list[str] | None, int]:
    options = spec.take(attributes=True, num_classes=None, classes=None)
    state = read_state(spec.where)
    names = None if options["classes"] is None else read_classes(str(options["classes"]))
    standard = list(catalog.DEFAULT.meta["categories"])
    labels = options["num_classes"] or (len(names) + 1 if names else len(state.get(_HEAD, standard)))
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=labels)
    load_state(model, state, spec.where, spec.name)
    if names is not None:
        if len(names) + 1 != labels:
            raise ConfigError(f"{spec.text}: {options['classes']} names {len(names)} classes for {labels - 1} labels")
        return model, ["__background__", *names], labels
    return model, standard if labels == len(standard) else None, labels


def _plain(name: str) -> str:
    name = name.strip().lower().replace("_", " ")
    return SYNONYMS.get(name.replace(" ", ""), name)
