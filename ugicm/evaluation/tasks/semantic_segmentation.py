"""Semantic segmentation: mean intersection over union (mIoU) over the pixels of all images, as in PASCAL VOC."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from ugicm.checkpoints.state_dict import read_state_dict
from ugicm.errors import ConfigError, ImageError, first_of
from ugicm.evaluation.results import mean
from ugicm.evaluation.specs import parse_spec, set_attributes
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.classifiers import Network, Preprocess
from ugicm.evaluation.tasks.hub import download_torchvision, find_torchvision, with_weights
from ugicm.evaluation.tasks.sources import check_distinct_files, check_upright, find_image, index_images
from ugicm.evaluation.tasks.voc import read_split
from ugicm.files import IMAGE_SUFFIXES, find
from ugicm.images import open_image

IGNORE = 255  # label of pixels that are not scored, such as object borders in VOC


class Segmenter(Network):
    """A semantic segmentation network. ``classes`` includes the background."""

    @torch.inference_mode()
    def __call__(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class per pixel, int64 [H, W] with ``size`` = (H, W), of a preprocessed image [3, h, w]."""
        logits = self.model(image[None].to(self.device))["out"]
        if not logits.isfinite().all():
            raise ImageError(f"{self.name}: the network's outputs are not finite")
        logits = nn.functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
        return logits[0].argmax(0).cpu()


def load_segmenter(text: str = "deeplabv3_resnet50", device: str = "cpu") -> Segmenter:
    """Load the segmentation network of torchvision that a specification names.

    Options are those of :class:`~ugicm.evaluation.tasks.classifiers.Preprocess`.

    Raise ConfigError if a name or option is unknown, CheckpointError if weights do not fit or cannot be downloaded.
    """
    spec = parse_spec(text)
    weights, path = find_torchvision(spec, torchvision.models.segmentation, "segmentation network")
    preprocess = Preprocess.of_weights(weights).with_options(spec)
    if preprocess.crop:
        raise ConfigError(f"{text}: crop={preprocess.crop} scores the whole mask with a part of the image; omit it")
    classes = len(weights.meta["categories"])
    if path:
        state = read_state_dict(path)
        options = {"aux_loss": True} if any(key.startswith("aux_classifier.") for key in state) else {}
        build = partial(torchvision.models.get_model, spec.name, weights=None, weights_backbone=None, **options)
        model, classes = with_weights(build, state, spec, classes)
    else:
        model = download_torchvision(spec, weights)
    set_attributes(model, spec.attributes, text)
    origin = f"torchvision {spec.name}{spec.changes}"
    return Segmenter(spec.label, model.eval().to(device), preprocess, classes, device, origin)


class SegmentationEvaluator(Evaluator):
    """Predicted classes, compared with the masks whose paths are the targets.

    A record holds [true class, predicted class, number of pixels] for every pair of classes in an image.
    """

    headline = ("mIoU",)

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter, self.name, self.identity = segmenter, segmenter.name, segmenter.identity
        self.prepare = partial(_prepare, segmenter.preprocess, segmenter.classes)
        self.metrics = ("mIoU", "pixel accuracy", *(f"IoU {number}" for number in range(segmenter.classes)))

    def process(self, items: Sequence[Item], inputs: Sequence[tuple[Tensor, np.ndarray]]) -> None:
        for item, (image, truth) in zip(items, inputs, strict=True):
            prediction = self.segmenter(image, truth.shape).numpy()
            self.records[item.key] = {"pairs": confusion(truth, prediction, self.segmenter.classes)}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return the IoU of every class that occurs or is predicted, their mean, and the pixel accuracy, in percent."""
        count = self.segmenter.classes
        matrix = np.zeros((count, count), dtype=np.int64)
        for record in records.values():
            for true, predicted, pixels in record["pairs"]:
                matrix[true, predicted] += pixels
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        iou = [100 * float(matrix[c, c] / union[c]) if union[c] else None for c in range(count)]
        total = int(matrix.sum())
        return {
            "mIoU": mean(iou),
            "pixel accuracy": 100 * float(matrix.trace()) / total if total else None,
            **{f"IoU {number}": value for number, value in enumerate(iou)},
        }


def _prepare(
    preprocess: Preprocess, classes: int, item: Item, image: Image.Image, original: Image.Image | None
) -> tuple[Tensor, np.ndarray]:
    mask = read_mask(item.target, classes)
    height, width = mask.shape
    if image.size != (width, height):
        raise ImageError(f"{item.target}: the mask is {width}x{height}, but the image {image.width}x{image.height}")
    check_upright(item.path, image.size)
    return preprocess(image), mask


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> list[list[int]]:
    """Return [true class, predicted class, number of pixels] for the pairs that occur in class arrays [H, W]."""
    valid = truth != IGNORE
    counts = np.bincount(classes * truth[valid].astype(np.int64) + prediction[valid], minlength=classes**2)
    return [[int(i // classes), int(i % classes), int(counts[i])] for i in np.flatnonzero(counts)]


def read_mask(path: str | Path, classes: int) -> np.ndarray:
    """Return the class per pixel [H, W] of a palette, gray or black-and-white image.

    Raise ImageError if it cannot be read, is not a mask, is compressed with loss, may be turned against its image, or
    has classes that do not exist: 255 alone, or with 0 alone, which are the values of object masks.
    """
    with open_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise ImageError(f"{path}: JPEG changes the classes of a mask; use PNG")
        mask = np.array(image)
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        kind = f"{mask.ndim} axes of {mask.dtype}"
        raise ImageError(f"{path}: a mask has one class index per pixel (palette or gray), not {kind}")
    wrong = mask[(mask != IGNORE) & ((mask < 0) | (mask >= classes))]
    if wrong.size:
        raise ImageError(f"{path}: the mask has class {wrong[0]}, but the network has classes 0 to {classes - 1}")
    if IGNORE in mask and not ((mask != 0) & (mask != IGNORE)).any():
        raise ImageError(
            f"{path}: the mask has only 255, which is not scored, and 0; if 255 is an object, write the number of its "
            "class"
        )
    check_upright(Path(path), None)
    return mask


def voc_items(root: str | Path, split: str = "val") -> list[Item]:
    """Return the images and masks of PASCAL VOC: ``ROOT/JPEGImages``, ``SegmentationClass``,
    ``ImageSets/Segmentation/SPLIT.txt``. Raise ConfigError if the split cannot be read."""
    root = Path(root)
    return [
        Item(f"{name}.jpg", root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in read_split(root, "Segmentation", split)
    ]


def paired_items(images: str | Path, masks: str | Path) -> list[Item]:
    """Return the images and masks of two folders, matched by path without extension. Raise ConfigError if a mask is
    missing."""
    images = Path(images)
    files = index_images(masks)
    keys = {path.relative_to(images).as_posix(): path for path in find(images, IMAGE_SUFFIXES)}
    check_distinct_files([*keys], [find_image(files, key) for key in keys], masks)
    missing = [key for key in keys if find_image(files, key) is None]
    if missing:
        raise ConfigError(f"{masks}: no mask for {len(missing)} of {len(keys)} images: {first_of(missing)}")
    return [Item(key, path, find_image(files, key)) for key, path in keys.items()]
