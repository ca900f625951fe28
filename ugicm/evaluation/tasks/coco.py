"""Detection and instance segmentation: COCO's average precision (AP) of boxes and masks, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ugicm.data.instances import run_length_code
from ugicm.errors import ConfigError, ImageError, first_of
from ugicm.evaluation import digests
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.detectors import Detector, to_uint8
from ugicm.evaluation.tasks.sources import find_image, index_images

_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_FIELDS = {"bbox": "bbox", "segm": "segmentation"}  # field of COCO's result format by IoU type
# Exceptions that malformed JSON documents lead to.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class CocoTruth:
    """Ground truth in COCO's JSON format.

    Attributes:
        images: (file name, width, height) by image id.
        categories: name by category id.
        digest: digest of the file.

    Raise ConfigError if the file is unreadable, malformed, or has annotations of undefined images or categories.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
            self.digest = digests.data_digest(data)
            self.document = json.loads(data.decode("utf-8"))
            images, annotations = self.document["images"], self.document["annotations"]
            self.images = {i["id"]: (i["file_name"], i["width"], i["height"]) for i in images}
            self.categories = {c["id"]: c["name"] for c in self.document["categories"]}
            used = {a["category_id"] for a in annotations}, {a["image_id"] for a in annotations}
            for annotation in annotations:
                _check_annotation(annotation)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except _MALFORMED as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"{path}: not a COCO annotation file: {reason}; required are images (id, file_name, width, "
                "height), annotations (id, image_id, category_id, bbox, area, iscrowd; segmentation for masks) and "
                "categories (id, name)"
            ) from None
        for kind, ids, known in zip(("categories", "images"), used, (self.categories, self.images), strict=True):
            unknown = sorted(map(str, ids - known.keys()))
            if unknown:
                raise ConfigError(f"{path}: annotations of {kind} that the file does not define: {first_of(unknown)}")
        if not self.images:
            raise ConfigError(f"{path}: no images")

    def items(self, folder: str | Path) -> list[Item]:
        """Return the images of a folder, with any extension. The target is the image id. Paths may not exist."""
        files = index_images(folder)
        rows = sorted((name, id) for id, (name, _, _) in self.images.items())
        return [Item(name, find_image(files, name) or Path(folder, name), id) for name, id in rows]

    def check_size(self, item: Item, image: Image.Image) -> None:
        """Raise ImageError if an image does not have the annotated size."""
        _, width, height = self.images[item.target]
        if image.size != (width, height):
            size = f"{image.width}x{image.height}"
            raise ImageError(f"{item.path}: the image is {size}, but {self.path.name} says {width}x{height}")

    def check_masks(self) -> None:
        """Raise ConfigError if an annotation has no valid mask."""
        for annotation in self.document["annotations"]:
            _, width, height = self.images[annotation["image_id"]]
            try:
                _check_mask(annotation.get("segmentation"), width, height)
            except ValueError as error:
                raise ConfigError(f"{self.path}: annotation {annotation['id']}: {error}") from None

    def api(self):
        """Return the ground truth as an object of pycocotools."""
        # COCOeval interprets annotation id 0 as "no match" and keeps only one annotation per id.
        annotations = [{**a, "id": number} for number, a in enumerate(self.document["annotations"], 1)]
        return _coco({"info": {}, **self.document, "annotations": annotations})


def _coco(document: dict):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _check_annotation(annotation: dict) -> None:
    """Raise one of ``_MALFORMED`` for an annotation that pycocotools cannot process."""
    for key in ("id", "image_id", "category_id"):
        annotation[key]
    box = [float(value) for value in annotation["bbox"]]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"the bbox {box} is not x, y, width, height")
    if not math.isfinite(annotation["area"]):
        raise ValueError(f"an annotation's area is {annotation['area']}")
    int(annotation["iscrowd"])


def _check_mask(segmentation: list | dict | None, width: int, height: int) -> None:
    """Raise ValueError if a segmentation is invalid for an image of that size."""
    if not segmentation:
        raise ValueError("it has no segmentation")
    if run_length_code(segmentation, height, width)["size"] != [height, width]:
        raise ValueError(f"its segmentation is not of {width}x{height}")


class CocoEvaluator(Evaluator):
    """Detections, scored by pycocotools. A record holds the detections in an image, in COCO's result format.

    Args:
        detector: the detector.
        truth: the ground truth.
        iou_types: "bbox" and "segm" as in pycocotools. Default: all that the detector supports.
    """

    def __init__(self, detector: Detector, truth: CocoTruth, iou_types: Sequence[str] | None = None):
        super().__init__()
        self.detector, self.truth = detector, truth
        self.iou_types = tuple(iou_types or (("bbox", "segm") if detector.has_masks else ("bbox",)))
        if "segm" in self.iou_types:
            truth.check_masks()
        self.metrics = tuple(_metric_name(kind, stat) for kind in self.iou_types for stat in _STATS)
        self.headline = tuple(_metric_name(kind, stat) for kind in reversed(self.iou_types) for stat in ("AP", "AP50"))
        self.name = detector.name
        self.identity = f"{detector.identity} {' '.join(self.iou_types)} of {sorted(truth.categories.items())}"
        self.labels = detector.map_labels(truth.categories, str(truth.path))
        self.prepare = partial(_prepare, truth)

    def process(self, items: Sequence[Item], inputs: Sequence[Tensor]) -> None:
        for item, output in zip(items, self.detector(inputs), strict=True):
            labels, scores, boxes = (output[key].tolist() for key in ("labels", "scores", "boxes"))
            known = [index for index, label in enumerate(labels) if label in self.labels]
            detections = []
            for index in known:
                x0, y0, x1, y1 = boxes[index]
                box = [x0, y0, x1 - x0, y1 - y0]
                detections.append({"category_id": self.labels[labels[index]], "bbox": box, "score": scores[index]})
            if "segm" in self.iou_types:
                for detection, code in zip(detections, encode_masks(output["masks"][known]), strict=True):
                    detection["segmentation"] = code
            self.records[item.key] = {"image": item.target, "detections": detections}

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return AP in percent over the images of ``records``: at IoU 0.5 to 0.95, 0.5 and 0.75, and by object size."""
        from pycocotools.cocoeval import COCOeval

        detections = [{"image_id": r["image"], **d} for r in records.values() for d in r["detections"]]
        truth = self.truth.api()
        scores: dict[str, float | None] = {}
        for kind in self.iou_types:
            with contextlib.redirect_stdout(io.StringIO()):
                if detections:
                    # loadRes modifies its argument, and computes areas from boxes if there are any.
                    others = set(_FIELDS.values()) - {_FIELDS[kind]}
                    results = truth.loadRes([{k: v for k, v in d.items() if k not in others} for d in detections])
                else:
                    results = _coco({**truth.dataset, "annotations": []})
                evaluation = COCOeval(truth, results, kind)
                evaluation.params.imgIds = sorted(record["image"] for record in records.values())
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            for stat, value in zip(_STATS, evaluation.stats, strict=False):
                scores[_metric_name(kind, stat)] = 100 * float(value) if value >= 0 else None
        return scores


def _prepare(truth: CocoTruth, item: Item, image: Image.Image, original: Image.Image | None) -> Tensor:
    truth.check_size(item, image)
    return to_uint8(item, image)


def _metric_name(iou_type: str, stat: str) -> str:
    """Return the name of a metric, such as "mask AP50"."""
    return f"{'mask' if iou_type == 'segm' else 'box'} {stat}"


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks [n, 1, H, W] in [0, 1], thresholded at 0.5, as COCO run-length codes."""
    from pycocotools import mask

    if not len(masks):
        return []
    planes = np.asfortranarray((masks[:, 0] > 0.5).permute(1, 2, 0).numpy().astype(np.uint8))
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in mask.encode(planes)]
