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

from ugicm.data.instances import check_distinct, run_length_code
from ugicm.errors import ConfigError, ImageError, first_of
from ugicm.evaluation import digests
from ugicm.evaluation.results import mean
from ugicm.evaluation.tasks.agreement import FIELDS, agreement, index_coco
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.detectors import Detector, prepare_detection
from ugicm.evaluation.tasks.sources import check_distinct_files, check_upright, find_image, index_images
from ugicm.extras import require_packages

_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Exceptions that malformed JSON documents lead to.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class CocoTruth:
    """Ground truth in COCO's JSON format.

    Attributes:
        images: (file name, width, height) by image id.
        categories: name by category id.
        digest: digest of the file.

    Raise ConfigError if the file is unreadable, malformed, has annotations of undefined images or categories, or has
    two images or categories of one id or file name.
    """

    def __init__(self, path: str | Path):
        require_packages("eval", f"{path}: COCO ground truth", "pycocotools")
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
            self.digest = digests.data_digest(data)
            self.document = json.loads(data.decode("utf-8"))
            images, annotations = self.document["images"], self.document["annotations"]
            self.images = {i["id"]: (i["file_name"], i["width"], i["height"]) for i in images}
            self.categories = {c["id"]: c["name"] for c in self.document["categories"]}
            check_distinct("images have the id", [i["id"] for i in images])
            check_distinct("images have the file_name", [i["file_name"] for i in images])
            check_distinct("categories have the id", [c["id"] for c in self.document["categories"]])
            used = {a["category_id"] for a in annotations}, {a["image_id"] for a in annotations}
            for annotation in annotations:
                _check_annotation(annotation)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
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
        found = [find_image(files, name) for name, _ in rows]
        check_distinct_files([name for name, _ in rows], found, self.path)
        return [Item(name, path or Path(folder, name), id) for (name, id), path in zip(rows, found, strict=True)]

    def check_size(self, item: Item, image: Image.Image) -> None:
        """Raise ImageError if an image does not have the annotated size, or may be turned against its annotations."""
        _, width, height = self.images[item.target]
        if image.size != (width, height):
            size = f"{image.width}x{image.height}"
            raise ImageError(f"{item.path}: the image is {size}, but {self.path.name} says {width}x{height}")
        check_upright(item.path, image.size)

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
        return index_coco({"info": {}, **self.document, "annotations": annotations})


def _check_annotation(annotation: dict) -> None:
    """Raise one of ``_MALFORMED`` for an annotation that pycocotools cannot process."""
    for key in ("id", "image_id", "category_id"):
        annotation[key]
    _read_box(annotation["bbox"])
    if not math.isfinite(annotation["area"]):
        raise ValueError(f"an annotation's area is {annotation['area']}")
    int(annotation["iscrowd"])


def _read_box(values: Sequence[float]) -> list[float]:
    """Return x, y, width, height. Raise ValueError or TypeError if the values are not finite numbers."""
    box = [float(value) for value in values]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"the bbox {box} is not x, y, width, height")
    return box


def _check_mask(segmentation: list | dict | None, width: int, height: int) -> None:
    """Raise ValueError if a segmentation is invalid for an image of that size."""
    if not segmentation:
        raise ValueError("it has no segmentation")
    if run_length_code(segmentation, height, width)["size"] != [height, width]:
        raise ValueError(f"its segmentation is not of {width}x{height}")


class CocoEvaluator(Evaluator):
    """Detections, scored by pycocotools and by their agreement with those in the originals.

    A record holds the detections in an image, in COCO's result format, and the agreement by IoU type if there is a
    ``reference``: the records of the originals. Without ground truth, one of an image under test holds the latter only.

    Args:
        detector: the detector. None if all records are those of :func:`read_detections`.
        truth: the ground truth, or None for the agreement alone.
        iou_types: "bbox" and "segm" as in pycocotools. Default: all that the detector supports.
    """

    def __init__(self, detector: Detector | None, truth: CocoTruth | None, iou_types: Sequence[str] | None = None):
        super().__init__()
        self.detector, self.truth = detector, truth
        self.reference: dict[str, dict] | None = None
        self.iou_types = tuple(iou_types or (("bbox", "segm") if detector is None or detector.has_masks else ("bbox",)))
        stats = (*(_STATS if truth else ()), *(("agreement",) if detector else ()))
        self.metrics = tuple(_metric_name(kind, stat) for kind in self.iou_types for stat in stats)
        shown = [stat for stat in stats if stat in ("AP", "AP50", "agreement")]
        self.headline = tuple(_metric_name(kind, stat) for kind in reversed(self.iou_types) for stat in shown)
        self.name = detector.name if detector else "detections"
        network = detector.identity if detector else "detections"
        categories = sorted(truth.categories.items()) if truth else detector.categories
        self.identity = f"{network} {' '.join(self.iou_types)} of {categories}, agreement"
        if truth is None:
            self.labels = {label: label for label in range(len(detector.categories))}
        else:
            # Data sets define categories that no annotation has, such as the super-categories of Roboflow.
            used = {a["category_id"] for a in truth.document["annotations"]}
            occurring = {id: name for id, name in truth.categories.items() if id in used}
            self.labels = detector.map_labels(occurring, str(truth.path)) if detector else {}
        if truth is not None and "segm" in self.iou_types:
            truth.check_masks()
        self.prepare = partial(prepare_detection, truth)

    def process(self, items: Sequence[Item], inputs: Sequence[Tensor]) -> None:
        for item, output in zip(items, self.detector(inputs), strict=True):
            detections = self._detections(output)
            record = {"image": item.target, "detections": detections}
            if self.reference is not None:
                original = self.reference[item.key]["detections"]
                record["agreement"] = {kind: agreement(original, detections, kind) for kind in self.iou_types}
                if self.truth is None:
                    del record["detections"]
            self.records[item.key] = record

    def _detections(self, output: dict[str, Tensor]) -> list[dict]:
        """Return the detections of known labels in COCO's result format."""
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
        return detections

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return, in percent, AP over the images of ``records`` (at IoU 0.5 to 0.95, 0.5 and 0.75, and by object size),
        and the mean agreement over the images whose original has objects."""
        agreements = {metric: self.per_image_scores(metric, records) for metric in self.metrics}
        means = {metric: mean((values or {}).values()) for metric, values in agreements.items()}
        return {**means, **(self._average_precision(records) if self.truth else {})}

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        kinds = {_metric_name(kind, "agreement"): kind for kind in self.iou_types}
        if metric not in kinds or not all("agreement" in record for record in records.values()):
            return None
        values = {key: record["agreement"][kinds[metric]] for key, record in records.items()}
        return {key: value for key, value in values.items() if value is not None}

    def _average_precision(self, records: dict[str, dict]) -> dict[str, float | None]:
        from pycocotools.cocoeval import COCOeval

        detections = [{"image_id": r["image"], **d} for r in records.values() for d in r["detections"]]
        truth = self.truth.api()
        scores: dict[str, float | None] = {}
        for kind in self.iou_types:
            with contextlib.redirect_stdout(io.StringIO()):
                if detections:
                    # loadRes modifies its argument, and computes areas from boxes if there are any.
                    others = set(FIELDS.values()) - {FIELDS[kind]}
                    results = truth.loadRes([{k: v for k, v in d.items() if k not in others} for d in detections])
                else:
                    results = index_coco({**truth.dataset, "annotations": []})
                evaluation = COCOeval(truth, results, kind)
                evaluation.params.imgIds = sorted(record["image"] for record in records.values())
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            for stat, value in zip(_STATS, evaluation.stats, strict=False):
                scores[_metric_name(kind, stat)] = 100 * float(value) if value >= 0 else None
        return scores


def _metric_name(iou_type: str, stat: str) -> str:
    """Return the name of a metric, such as "mask AP50" or "box agreement"."""
    return f"{'mask' if iou_type == 'segm' else 'box'} {stat}"


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks [n, 1, H, W] in [0, 1], thresholded at 0.5, as COCO run-length codes."""
    from pycocotools import mask

    if not len(masks):
        return []
    planes = np.asfortranarray((masks[:, 0] > 0.5).permute(1, 2, 0).numpy().astype(np.uint8))
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in mask.encode(planes)]


def read_detections(path: str | Path, truth: CocoTruth) -> tuple[dict[str, dict], tuple[str, ...]]:
    """Return records for :class:`CocoEvaluator` from a file, and the IoU types whose field all detections have.

    The file has COCO's result format: a JSON list of image_id, category_id, score, and bbox, segmentation or both.
    Raise ConfigError if it is unreadable or malformed, or has images or categories that the ground truth does not have.
    """
    records = {name: {"image": id, "detections": []} for id, (name, _, _) in truth.images.items()}
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("not a list")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON list of detections: {error}; required is COCO's result format") from None
    for index, row in enumerate(rows):
        try:
            name, detection = _read_detection(row, truth)
        except _MALFORMED as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"{path}: detection at index {index}: {reason}; required are image_id and category_id of {truth.path}, "
                "a finite score, and bbox or segmentation (size, counts) or both"
            ) from None
        records[name]["detections"].append(detection)
    detections = [detection for record in records.values() for detection in record["detections"]]
    iou_types = tuple(kind for kind, field in FIELDS.items() if all(field in detection for detection in detections))
    if not iou_types:
        raise ConfigError(f"{path}: detections without bbox and others without segmentation; give all the same fields")
    return records, iou_types


def _read_detection(row: dict, truth: CocoTruth) -> tuple[str, dict]:
    """Return (file name of the image, detection in a record). Raise one of ``_MALFORMED`` for an invalid detection."""
    for key, known in (("image_id", truth.images), ("category_id", truth.categories)):
        if row[key] not in known:
            raise ValueError(f"{key} {row[key]} is not in {truth.path.name}")
    name, width, height = truth.images[row["image_id"]]
    detection = {"category_id": row["category_id"], "score": float(row["score"])}
    if not math.isfinite(detection["score"]):
        raise ValueError(f"the score is {row['score']}")
    if row.get("bbox"):
        detection["bbox"] = _read_box(row["bbox"])
    if code := row.get("segmentation"):
        if not isinstance(code, dict) or not isinstance(code["counts"], str):
            raise ValueError(f"its segmentation is not a compressed run-length code of {width}x{height}")
        _check_mask(code, width, height)
        detection["segmentation"] = {"size": [height, width], "counts": code["counts"]}
    if not detection.keys() & FIELDS.values():
        raise ValueError("it has neither bbox nor segmentation")
    return name, detection
