"""Semantic segmentation: mean intersection over union, as PASCAL VOC counts it (over all pixels of all
images).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import load_state, read_state
from ugicm.errors import ConfigError, ImageError, first_of
from ugicm.evaluation.specs import parse_spec, set_attributes
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.classifiers import Network, Preprocess
from ugicm.evaluation.tasks.coco import voc_split
from ugicm.evaluation.tasks.hub import downloaded
from ugicm.evaluation.tasks.sources import find_image, index_images
from ugicm.files import IMAGE_SUFFIXES, find
from ugicm.images import opened

IGNORE = 255  # unlabeled pixels, and the borders of objects in VOC


class Segmenter(Network):
    """A network that names every pixel. Of its ``classes`` one is background."""

    @torch.inference_mode()
    def __call__(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """[3, h, w] as ``preprocess`` makes it -> class per pixel [H, W], scores enlarged to ``size`` (H,
        W).
        """
        scores = self.model(image[None].to(self.device))["out"]
        scores = nn.functional.interpolate(scores.float(), size, mode="bilinear", align_corners=False)
        return scores[0].argmax(0).cpu()


def load_segmenter(text: str = "deeplabv3_resnet50", device: str = "cpu") -> Segmenter:
    """A segmentation network of torchvision by name, ``NAME=PATH`` with local weights.

    Options: ``num_classes=N`` for local weights (21 without it), and those of
    :class:`~ugicm.evaluation.tasks.classifiers.Preprocess`.

    Raises ConfigError for an unknown name or option, CheckpointError for weights that cannot be had or do
    not fit.
    """
    spec = parse_spec(text)
    name = spec.name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in known:
        raise ConfigError(f"{text}: torchvision has no segmentation network '{name}'; available: {', '.join(known)}")
    preset = torchvision.models.get_model_weights(name).DEFAULT
    transform = preset.transforms()
    preprocess = Preprocess(
        transform.resize_size[0],
        0,
        transform.interpolation.value,
        tuple(transform.mean),
        tuple(transform.std),
    )
    classes = len(preset.meta["categories"])
    if spec.where is None:
        preprocess = preprocess.changed(spec)
        model = downloaded(
            lambda: torchvision.models.get_model(name, weights=preset), spec, f"its weights {preset.name}"
        )
    else:
        preprocess = preprocess.changed(spec, "num_classes")
        state = read_state(spec.where)
        classes = spec.options.get("num_classes", classes)
        auxiliary = {"aux_loss": True} if any(k.startswith("aux_classifier.") for k in state) else {}
        model = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, **auxiliary
        )
        load_state(model, state, spec.where, spec.name)
    set_attributes(model, spec.attributes, text)
    origin = f"torchvision {name}{spec.changes}"
    return Segmenter(spec.label, model.eval().to(device), preprocess, classes, device, origin)


class SegmentationEvaluator(Evaluator):
    """A segmenter against masks whose paths are the items' targets. A record holds [true class, found
    class, pixels] for every pair that occurs in an image."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter, self.name, self.identity = segmenter, segmenter.name, segmenter.identity
        self.prepare = partial(_prepare, segmenter.preprocess, segmenter.classes)
        self.headline = ("mIoU",)
        self.metrics = ("mIoU", "pixel accuracy", *(f"IoU {number}" for number in range(segmenter.classes)))

    def process(self, items: Sequence[Item], prepared: Sequence[tuple[Tensor, np.ndarray]]) -> None:
        for item, (image, truth) in zip(items, prepared, strict=True):
            found = self.segmenter(image, truth.shape).numpy()
            self.records[item.key] = {"pairs": confusion(truth, found, self.segmenter.classes)}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """IoU of every class that is there or was found, and their mean; share of right pixels; in
        percent.
        """
        count = self.segmenter.classes
        matrix = np.zeros((count, count), dtype=np.int64)
        for record in records.values():
            for true, found, pixels in record["pairs"]:
                matrix[true, found] += pixels
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        iou = [100 * float(matrix[c, c] / union[c]) if union[c] else None for c in range(count)]
        there = [value for value in iou if value is not None]
        total = int(matrix.sum())
        return {
            "mIoU": sum(there) / len(there) if there else None,
            "pixel accuracy": 100 * float(matrix.trace()) / total if total else None,
            **{f"IoU {number}": value for number, value in enumerate(iou)},
        }


def _prepare(
    preprocess: Preprocess, classes: int, item: Item, image: Image.Image, original: Image.Image | None
) -> tuple[Tensor, np.ndarray]:
    mask = read_mask(item.target, classes)
    if mask.shape != (image.height, image.width):
        height, width = mask.shape
        raise ImageError(f"{item.target}: the mask is {width}x{height}, the image {image.width}x{image.height}")
    return preprocess(image), mask


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> list[list[int]]:
    """[true, found, pixels] for pairs of classes that occur; ignored pixels left out. Arrays [H, W]."""
    valid = truth != IGNORE
    counts = np.bincount(classes * truth[valid].astype(np.int64) + found[valid], minlength=classes**2)
    return [[int(i // classes), int(i % classes), int(counts[i])] for i in np.flatnonzero(counts)]


def read_mask(path: str | Path, classes: int) -> np.ndarray:
    """Class per pixel [H, W] from a palette, gray or black-and-white image. Raises ImageError for what is none, or
    names classes that do not exist."""
    with opened(path) as image:
        mask = np.array(image)
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        kind = f"{mask.ndim} axes of {mask.dtype}"
        raise ImageError(f"{path}: a mask has one class number per pixel (palette or gray), not {kind}")
    wrong = mask[(mask != IGNORE) & ((mask < 0) | (mask >= classes))]
    if wrong.size:
        raise ImageError(f"{path}: class {wrong[0]} in a mask, but the network has classes 0 to {classes - 1}")
    return mask


def voc_items(root: str | Path, split: str = "val") -> list[Item]:
    """Images and masks of PASCAL VOC: ``ROOT/JPEGImages``, ``SegmentationClass``,
    ``ImageSets/Segmentation``. Raises ConfigError for a split that is not there or cannot be read.
    """
    root = Path(root)
    return [
        Item(f"{name}.jpg", root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in voc_split(root, "Segmentation", split)
    ]


def paired_items(images: str | Path, masks: str | Path) -> list[Item]:
    """Images and masks of two folders, matched by name but for the extension. Raises ConfigError naming
    images without a mask."""
    images = Path(images)
    files = index_images(masks)
    keys = {path.relative_to(images).as_posix(): path for path in find(images, IMAGE_SUFFIXES)}
    without = [key for key in keys if find_image(files, key) is None]
    if without:
        raise ConfigError(f"{masks}: no mask for {len(without)} of {len(keys)} images: {first_of(without)}")
    return [Item(key, path, find_image(files, key)) for key, path in keys.items()]
