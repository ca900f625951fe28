"""Agreement of the detections in an image under test with those in its original, without ground truth.

The detections in the original with a score of at least 0.5 are the objects. The agreement of an image is the average
precision of the detections in the image under test, over ten thresholds of intersection over union (IoU) from 0.5 to
0.95 and 101 recalls as by COCO. The detections of all categories are ranked together, so that an object found in a
category that the original does not have counts as false.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from ugicm.evaluation.tasks.voc import mean_precision

CONFIDENT = 0.5
FIELDS = {"bbox": "bbox", "segm": "segmentation"}  # field of COCO's result format by IoU type


def agreement(original: Sequence[dict], tested: Sequence[dict], iou_type: str) -> float | None:
    """Return the agreement in percent of the detections in an image with those in its original.

    Detections are in COCO's result format, without image. None if no detection in the original is confident.
    """
    from pycocotools.cocoeval import COCOeval

    objects = [detection for detection in original if detection["score"] >= CONFIDENT]
    if not objects:
        return None
    categories = {detection["category_id"] for detection in (*objects, *tested)}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_one_image(objects, categories), _one_image(tested, categories), iou_type)
        parameters = evaluation.params
        parameters.areaRng, parameters.areaRngLbl, parameters.maxDets = [[0, 1e10]], ["all"], [100]
        evaluation.evaluate()
    cells = [cell for cell in evaluation.evalImgs if cell is not None]
    order = np.argsort(-np.concatenate([cell["dtScores"] for cell in cells]), kind="stable")
    hits = np.concatenate([cell["dtMatches"] for cell in cells], axis=1)[:, order] > 0
    return 100 * float(np.mean([mean_precision(row, len(objects), parameters.recThrs) for row in hits]))


def _one_image(detections: Sequence[dict], categories: set[int]):
    """Return detections as an object of pycocotools, as annotations of one image."""
    return index_coco({
        "images": [{"id": 1, "height": 0, "width": 0}],  # sizes are those of the run-length codes
        "categories": [{"id": category} for category in categories],
        "annotations": [
            {**d, "id": number, "image_id": 1, "iscrowd": 0, "area": d["bbox"][2] * d["bbox"][3]}
            for number, d in enumerate(detections, 1)
        ],
    })  # fmt: skip


def index_coco(document: dict):
    """Return a COCO document as an object of pycocotools."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
