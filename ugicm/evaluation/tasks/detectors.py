"""Object detectors: those of torchvision with pretrained or local weights, and those of a function in a Python file.

``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2=PATH``, ``fasterrcnn_resnet50_fpn=PATH:classes=names.txt``,
``FILE.py:function``. Local weights and functions whose labels are not COCO's category ids need ``classes=FILE``, the
class names without background. An option with dots sets an attribute of a submodule (``roi_heads.score_thresh=0.05``,
``transform.min_size=640``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ugicm.checkpoints.state_dict import load_matching, read_state_dict
from ugicm.errors import ConfigError, ImageError, first_line, first_of
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.specs import Spec, parse_spec, set_attributes
from ugicm.evaluation.tasks.hub import download_torchvision, find_torchvision, load_function
from ugicm.evaluation.tasks.labels import read_class_names

_COCO_CATEGORIES = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]  # by category id
# PASCAL VOC names of COCO categories.
_SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


@dataclass
class Detector:
    """An object detector.

    Attributes:
        name: name in tables.
        model: callable in torchvision's conventions, from a list of float images [3, H, W] in [0, 1] to a list of
            dicts of tensors: ``boxes`` [n, 4] (x0, y0, x1, y1), ``labels`` [n] from 1, ``scores`` [n], and ``masks``
            [n, 1, H, W] in [0, 1] if it has masks.
        categories: name of every label. Label 0 is the background.
        origin: library, architecture and modified attributes.
        has_masks: whether detections include masks.
    """

    name: str
    model: Callable[[list[Tensor]], list[dict[str, Tensor]]]
    categories: list[str]
    device: str
    origin: str
    has_masks: bool = False

    @cached_property
    def identity(self) -> str:
        """Everything that detections depend on."""
        return f"{self.origin} weights {digest_of(self.model)} one image at a time"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections in each of the uint8 images [3, H, W], on the CPU.

        Raise ConfigError if they are not in torchvision's conventions, ImageError if they are not finite.
        """
        # torchvision pads a batch to its largest image, which changes the detections in the others.
        outputs = [self.model([image.to(self.device).float() / 255])[0] for image in images]
        outputs = [{key: value.cpu() for key, value in output.items()} for output in outputs]
        for image, output in zip(images, outputs, strict=True):
            self._check(output, *image.shape[1:])
        return outputs

    def _check(self, output: dict[str, Tensor], height: int, width: int) -> None:
        count = len(output["scores"])
        shapes = {"boxes": (count, 4), "labels": (count,), "scores": (count,)}
        if self.has_masks:
            shapes["masks"] = (count, 1, height, width)
        for key, shape in shapes.items():
            if count and output[key].shape != shape:
                found = list(output[key].shape)
                raise ConfigError(f"{self.name}: {key} of shape {found}; expected {list(shape)} as of torchvision")
        for label in output["labels"].unique().tolist():
            if not 0 < label < len(self.categories) or self.categories[label] == "N/A":
                raise ConfigError(
                    f"{self.name}: label {label} is no category; labels are COCO's category ids (1 to 90), or with "
                    ":classes=FILE the numbers of its lines from 1"
                )
        boxes, scores = output["boxes"], output["scores"]
        if not (scores.isfinite().all() and boxes.isfinite().all()):
            raise ImageError(f"{self.name}: boxes or scores are not finite")
        if count and boxes.max() <= 1 < min(height, width):
            raise ImageError(f"{self.name}: no box reaches beyond the first pixel; boxes are in pixels, not in [0, 1]")
        if count and (boxes[:, 2:] < boxes[:, :2]).any():
            raise ConfigError(f"{self.name}: boxes of negative size; boxes are x0, y0, x1, y1")
        for key in ("scores", "masks") if self.has_masks else ("scores",):
            if count and not 0 <= float(output[key].min()) <= float(output[key].max()) <= 1:
                raise ConfigError(f"{self.name}: {key} are not in [0, 1], as those of torchvision are")

    def map_labels(self, categories: dict[int, str], where: str) -> dict[int, int]:
        """Return the category id of each label whose name is that of a category of the dataset ``where``.

        Raise ConfigError if the detector lacks a category, or two categories have one name.
        """
        own = [_normalize(name) for name in self.categories]
        labels = {name: label for label, name in enumerate(own)}
        names = [_normalize(name) for name in categories.values()]
        for owner, listed in ((where, names), (self.name, [name for name in own if name in names])):
            if len(set(listed)) < len(listed):
                raise ConfigError(f"{owner}: two categories have the name {max(listed, key=listed.count)}; rename one")
        unknown = [name for name in categories.values() if _normalize(name) not in labels]
        if unknown:
            raise ConfigError(f"{where}: {self.name} does not have the categories {first_of(unknown)}; use another one")
        return {labels[_normalize(name)]: id for id, name in categories.items()}


def prepare_detection(truth, item, image: Image.Image, original: Image.Image | None = None) -> Tensor:
    """Return the input of a detector, uint8 [3, H, W]. Serves as ``prepare`` of an evaluator.

    Raise ImageError if the image does not fit its annotations in ``truth``, unless there are none (None).
    """
    if truth is not None:
        truth.check_size(item, image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_detector(text: str = "maskrcnn_resnet50_fpn", device: str = "cpu") -> Detector:
    """Load the detector that a specification names.

    Raise ConfigError if a name or option is unknown, CheckpointError if weights do not fit or cannot be downloaded.
    """
    spec = parse_spec(text)
    if spec.function:
        return _load_own(spec, device)
    weights, path = find_torchvision(spec, torchvision.models.detection, "detector")
    categories = list(weights.meta["categories"])
    options = spec.take(attributes=True, **({"classes": None} if path else {}))
    if path:
        if (file := options["classes"]) is not None:
            categories = ["__background__", *read_class_names(str(file))]
        count = len(categories)
        model = torchvision.models.get_model(spec.name, weights=None, weights_backbone=None, num_classes=count)
        load_matching(model, read_state_dict(path), path, f"{spec.name} of {count - 1} classes (:classes=FILE)")
    else:
        model = download_torchvision(spec, weights)
    set_attributes(model, spec.attributes, text)
    origin = f"torchvision {spec.name}{spec.changes}"
    has_masks = getattr(getattr(model, "roi_heads", None), "mask_head", None) is not None
    return Detector(spec.label, model.eval().to(device), categories, device, origin, has_masks)


def _load_own(spec: Spec, device: str) -> Detector:
    file = spec.take(attributes=True, classes=None)["classes"]
    own = ["__background__", *read_class_names(str(file))] if file is not None else list(_COCO_CATEGORIES)
    network, origin = load_function(spec, device)
    detector = Detector(spec.label, network, own, device, origin)
    try:
        (output,) = detector([torch.full((3, 160, 240), 128, dtype=torch.uint8)])
    except ConfigError:
        raise
    except Exception as error:  # of any code
        raise ConfigError(
            f"{spec.text}: not a detector in torchvision's conventions, from a list of images [3, H, W] to a list of "
            f"dicts of boxes, labels and scores: {type(error).__name__}: {first_line(error)}"
        ) from error
    detector.has_masks = "masks" in output
    return detector


def _normalize(name: str) -> str:
    name = name.strip().lower().replace("_", " ")
    return _SYNONYMS.get(name.replace(" ", ""), name)
