"""Object detectors of torchvision with pretrained or local weights.

``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2=PATH``, ``fasterrcnn_resnet50_fpn=PATH:classes=names.txt``.
Local weights that were not trained on COCO need ``classes=FILE``, the class names without background. An option with
dots sets an attribute of a submodule (``roi_heads.score_thresh=0.05``, ``transform.min_size=640``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import load_matching, read_state_dict
from ugicm.errors import ConfigError, first_of
from ugicm.evaluation.digests import digest_of
from ugicm.evaluation.specs import parse_spec, set_attributes
from ugicm.evaluation.tasks.hub import download_torchvision, find_torchvision
from ugicm.evaluation.tasks.labels import read_class_names

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
        categories: name of every label. Label 0 is the background.
        origin: library, architecture and modified attributes.
    """

    name: str
    model: nn.Module
    categories: list[str]
    device: str
    origin: str

    @property
    def has_masks(self) -> bool:
        """Whether detections include masks."""
        return getattr(getattr(self.model, "roi_heads", None), "mask_head", None) is not None

    @cached_property
    def identity(self) -> str:
        """Everything that detections depend on."""
        return f"{self.origin} weights {digest_of(self.model)} one image at a time"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections in each of the uint8 images [3, H, W], on the CPU: ``boxes`` [n, 4] (x0, y0, x1, y1),
        ``labels`` [n], ``scores`` [n], and ``masks`` [n, 1, H, W] in [0, 1] if the detector has masks."""
        # torchvision pads a batch to its largest image, which changes the detections in the others.
        outputs = [self.model([image.to(self.device).float() / 255])[0] for image in images]
        return [{key: value.cpu() for key, value in output.items()} for output in outputs]

    def map_labels(self, categories: dict[int, str], where: str) -> dict[int, int]:
        """Return the category id of each label whose name is that of a category of the dataset ``where``.

        Raise ConfigError if the detector lacks a category.
        """
        labels = {_normalize(name): label for label, name in enumerate(self.categories) if name != "N/A"}
        unknown = [name for name in categories.values() if _normalize(name) not in labels]
        if unknown:
            raise ConfigError(f"{where}: {self.name} does not have the categories {first_of(unknown)}; use another one")
        return {labels[_normalize(name)]: id for id, name in categories.items()}


def to_uint8(item, image: Image.Image, original: Image.Image | None = None) -> Tensor:
    """Return the input of a detector, uint8 [3, H, W]. Serves as ``prepare`` of an evaluator."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_detector(text: str = "maskrcnn_resnet50_fpn", device: str = "cpu") -> Detector:
    """Load the detector that a specification names.

    Raise ConfigError if a name or option is unknown, CheckpointError if weights do not fit or cannot be downloaded.
    """
    spec = parse_spec(text)
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
    return Detector(spec.label, model.eval().to(device), categories, device, origin)


def _normalize(name: str) -> str:
    name = name.strip().lower().replace("_", " ")
    return _SYNONYMS.get(name.replace(" ", ""), name)
