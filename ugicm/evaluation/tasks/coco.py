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
from torch import Tensor

from ugicm.errors import ConfigError
from ugicm.evaluation.results import mean
from ugicm.evaluation.tasks.agreement import FIELDS, agreement, index_coco
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.coco_truth import MALFORMED, CocoTruth, check_boxes, check_mask, read_box
from ugicm.evaluation.tasks.detectors import Detector, prepare_detection

_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


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
        except MALFORMED as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"{path}: detection at index {index}: {reason}; required are image_id and category_id of {truth.path}, "
                "a finite score, and bbox or segmentation (size, counts) or both"
            ) from None
        records[name]["detections"].append(detection)
    detections = [detection for record in records.values() for detection in record["detections"]]
    sized = [(truth.images[r["image"]], r["detections"]) for r in records.values()]
    check_boxes(path, [(d["bbox"], image) for image, found in sized for d in found if "bbox" in d])
    iou_types = tuple(kind for kind, field in FIELDS.items() if all(field in detection for detection in detections))
    if not iou_types:
        raise ConfigError(f"{path}: detections without bbox and others without segmentation; give all the same fields")
    return records, iou_types


def _read_detection(row: dict, truth: CocoTruth) -> tuple[str, dict]:
    """Return (file name of the image, detection in a record). Raise one of ``MALFORMED`` for an invalid detection."""
    for key, known in (("image_id", truth.images), ("category_id", truth.categories)):
        if row[key] not in known:
            raise ValueError(f"{key} {row[key]} is not in {truth.path.name}")
    name, width, height = truth.images[row["image_id"]]
    detection = {"category_id": row["category_id"], "score": float(row["score"])}
    if not math.isfinite(detection["score"]):
        raise ValueError(f"the score is {row['score']}")
    if row.get("bbox"):
        detection["bbox"] = read_box(row["bbox"])
    if code := row.get("segmentation"):
        if not isinstance(code, dict) or not isinstance(code["counts"], str):
            raise ValueError(f"its segmentation is not a compressed run-length code of {width}x{height}")
        check_mask(code, width, height)
        detection["segmentation"] = {"size": [height, width], "counts": code["counts"]}
    if not detection.keys() & FIELDS.values():
        raise ValueError("it has neither bbox nor segmentation")
    return name, detection
