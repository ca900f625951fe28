"""Detection and instance segmentation: COCO's average precision of boxes and masks, PASCAL VOC's mAP.

COCO numbers come from pycocotools. VOC's are computed here as its development kit does: a detection is
right when it overlaps an object that no better-scored one claimed by at least half of their union (pixel
coordinates taken as inclusive), difficult objects count neither way, and precision is averaged over eleven
recalls (2007) or over all (2010 and later).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ugicm.data.instances import run_length_code
from ugicm.errors import ConfigError, first_line, first_of
from ugicm.evaluation import digests
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.detectors import Detector
from ugicm.evaluation.tasks.sources import find_image, index_images

_COCO_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/"
_VOC_OVERLAP = 0.5  # intersection over union from which a detection is of an object
_FIELDS = {"bbox": "bbox", "segm": "segmentation"}  # of COCO's results, by what is scored
# What json that is not as it should be leads its readers into.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class CocoTruth:
    """Ground truth in COCO's json.

    Attributes:
        images: image id -> (file name, width, height).
        categories: category id -> name.
        digest: of the file's contents.

    Raises ConfigError for what is not such a file, and for annotations of unknown images or categories.
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
            for ids in (self.images, self.categories, [name for name, _, _ in self.images.values()]):
                sorted(ids)  # pycocotools does it, and cannot compare texts with numbers
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except _MALFORMED as error:
            wrong = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(
                f"{path}: not a COCO annotation file: {wrong}; it needs images (id, file_name, width, height), "
                "annotations (id, image_id, category_id, bbox, area, iscrowd; segmentation for masks) and categories "
                "(id, name)"
            ) from None
        for kind, ids, known in zip(("categories", "images"), used, (self.categories, self.images), strict=True):
            unknown = sorted(map(str, ids - known.keys()))
            if unknown:
                raise ConfigError(f"{path}: annotations of {kind} that the file does not define: {first_of(unknown)}")
        if not self.images:
            raise ConfigError(f"{path}: no images")

    def items(self, folder: str | Path) -> list[Item]:
        """The images, whatever their extension; ``target`` is the image id. One that is not there has the path where
        it should be."""
        files = index_images(folder)
        rows = sorted((name, id) for id, (name, _, _) in self.images.items())
        return [Item(name, find_image(files, name) or Path(folder, name), id) for name, id in rows]

    def check_size(self, item: Item, image: Image.Image) -> str | None:
        """A complaint about an image that is not of the annotated size."""
        name, width, height = self.images[item.target]
        if image.size == (width, height):
            return None
        return f"the image is {image.width}x{image.height}, {self.path.name} says {width}x{height}"

    def check_masks(self) -> None:
        """Raises ConfigError where an annotation has no mask, or none that can be compared with others."""
        for annotation in self.document["annotations"]:
            _, width, height = self.images[annotation["image_id"]]
            try:
                _check_mask(annotation.get("segmentation"), width, height)
            except ValueError as error:
                raise ConfigError(f"{self.path}: annotation {annotation['id']}: {error}") from None

    def api(self):
        """As pycocotools has it."""
        from pycocotools.coco import COCO

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            # Numbered anew: to COCOeval an id of 0 means "no match", and of two with one id it sees the last alone.
            rows = [{**a, "id": number} for number, a in enumerate(self.document["annotations"], 1)]
            truth.dataset = {"info": {}, **self.document, "annotations": rows}
            truth.createIndex()
        return truth


def _check_annotation(annotation: dict) -> None:
    """Raises what ``_MALFORMED`` names for an annotation that pycocotools would stumble over."""
    for key in ("id", "image_id", "category_id"):
        annotation[key]
    _box(annotation["bbox"])
    if not math.isfinite(annotation["area"]):
        raise ValueError(f"an annotation's area is {annotation['area']}")
    int(annotation["iscrowd"])


def _box(values: Sequence) -> list[float]:
    """x, y, width, height. Raises ValueError or TypeError for what is none."""
    box = [float(value) for value in values]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"the bbox {values} is not x, y, width, height")
    return box


def _check_mask(segmentation: list | dict | None, width: int, height: int) -> None:
    """Raises ValueError for what is no mask of an image of that size."""
    if not segmentation:
        raise ValueError("it has no segmentation")
    if run_length_code(segmentation, height, width)["size"] != [height, width]:
        raise ValueError(f"its segmentation is not of {width}x{height}")


class CocoEvaluator(Evaluator):
    """A detector's finds, scored by pycocotools. A record holds an image's detections in COCO's result
    format.

    ``detector`` may be None for records that come from elsewhere.
    """

    def __init__(self, detector: Detector | None, truth: CocoTruth, kinds: Sequence[str] | None = None):
        super().__init__()
        self.detector, self.truth = detector, truth
        if kinds is None:
            kinds = ("bbox", "segm") if detector is None or detector.has_masks else ("bbox",)
        self.kinds = tuple(kinds)
        if "segm" in self.kinds:
            truth.check_masks()
        self.metrics = tuple(_coco_name(kind, stat) for kind in self.kinds for stat in _COCO_STATS)
        self.headline = tuple(_coco_name(kind, stat) for kind in reversed(self.kinds) for stat in ("AP", "AP50"))
        self.name = detector.name if detector else "detections"
        network = detector.identity if detector else "detections"
        self.identity = f"{network} {' '.join(self.kinds)} of {sorted(truth.categories.items())}"
        self.labels = detector.translate(truth.categories, str(truth.path)) if detector else {}

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def process(self, items: Sequence[Item], prepared: Sequence[Tensor]) -> None:
        for item, found in zip(items, self.detector(prepared), strict=True):
            keep = torch.tensor([int(label) in self.labels for label in found["labels"]], dtype=torch.bool)
            found = {key: value[keep] for key, value in found.items()}
            masks = encode_masks(found["masks"]) if "segm" in self.kinds else None
            self.records[item.key] = {"image": item.target, "detections": []}
            for index, (box, label, score) in enumerate(
                zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
            ):
                x0, y0, x1, y1 = box
                detection = {
                    "category_id": self.labels[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
                if masks is not None:
                    detection["segmentation"] = masks[index]
                self.records[item.key]["detections"].append(detection)

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """COCO's AP over IoU .5 ... .95, at .5, at .75, and for small, medium, large objects, in percent.
        Over the images of ``records`` alone."""
        from pycocotools.cocoeval import COCOeval

        images = sorted(record["image"] for record in records.values())
        detections = [{"image_id": r["image"], **d} for r in records.values() for d in r["detections"]]
        truth = self.truth.api()
        scores: dict[str, float | None] = {}
        for kind in self.kinds:
            with contextlib.redirect_stdout(io.StringIO()):
                if detections:
                    # loadRes adds fields to what it is given, and takes areas from boxes where it sees any.
                    others = set(_FIELDS.values()) - {_FIELDS[kind]}
                    rows = [{k: v for k, v in d.items() if k not in others} for d in detections]
                    results = truth.loadRes(rows)
                else:
                    results = type(truth)()
                    results.dataset = {
                        "images": truth.dataset["images"],
                        "categories": truth.dataset["categories"],
                    }
                    results.dataset["annotations"] = []
                    results.createIndex()
                evaluation = COCOeval(truth, results, kind)
                evaluation.params.imgIds = images
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            for stat, value in zip(_COCO_STATS, evaluation.stats, strict=False):
                scores[_coco_name(kind, stat)] = 100 * float(value) if value >= 0 else None
        return scores


def encode_masks(masks: Tensor) -> list[dict]:
    """Masks [n, 1, H, W] in [0, 1] -> COCO's run-length code at threshold .5."""
    from pycocotools import mask

    if not len(masks):
        return []
    planes = np.asfortranarray((masks[:, 0] > 0.5).permute(1, 2, 0).numpy().astype(np.uint8))
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in mask.encode(planes)]


def read_detections(path: str | Path, truth: CocoTruth) -> dict[str, dict]:
    """Records from a file of detections in COCO's result format (a list of image_id, category_id, bbox or
    segmentation, score), so that any detector can be scored: :func:`kinds_of` says by what. Raises ConfigError for
    what is not one or speaks of other images."""
    records = {name: {"image": id, "detections": []} for id, (name, _, _) in truth.images.items()}
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as json: {error}") from None
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: not a list of COCO detections")
    for number, row in enumerate(rows):
        try:
            name, detection = _read_detection(row, truth)
        except _MALFORMED as error:
            wrong = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(f"{path}: not a list of COCO detections: number {number}: {wrong}") from None
        records[name]["detections"].append(detection)
    if not kinds_of(records):
        raise ConfigError(f"{path}: some detections have no bbox, others no segmentation: there is nothing to score")
    return records


def _read_detection(row: dict, truth: CocoTruth) -> tuple[str, dict]:
    """(file name of the image, what a record keeps) of a row of results. Raises what ``_MALFORMED`` names."""
    if row["category_id"] not in truth.categories or row["image_id"] not in truth.images:
        raise ValueError(f"image {row['image_id']}, category {row['category_id']}: not in {truth.path}")
    name, width, height = truth.images[row["image_id"]]
    kept = {"category_id": row["category_id"], "score": float(row["score"])}
    if not math.isfinite(kept["score"]):
        raise ValueError(f"its score is {row['score']}")
    box, code = row.get("bbox"), row.get("segmentation")
    if not box and not code:
        raise ValueError("it has neither bbox nor segmentation")
    if box:
        kept["bbox"] = _box(box)
    if code:
        if not isinstance(code, dict) or not isinstance(code["counts"], str) or code["size"] != [height, width]:
            raise ValueError(f"its segmentation is not COCO's run-length code (size, counts) of {width}x{height}")
        _check_mask(code, width, height)
        kept["segmentation"] = code
    return name, kept


def kinds_of(records: dict[str, dict]) -> tuple[str, ...]:
    """What records can be scored by: the kinds whose field every detection has."""
    found = [detection for record in records.values() for detection in record["detections"]]
    return tuple(kind for kind, field in _FIELDS.items() if all(field in detection for detection in found))


def _coco_name(kind: str, stat: str) -> str:
    return f"{'mask' if kind == 'segm' else 'box'} {stat}"


def voc_split(root: Path, task: str, split: str) -> list[str]:
    """Names of images from ``ROOT/ImageSets/TASK/SPLIT.txt``. Raises ConfigError, with the splits there are, or with
    where PASCAL VOC is to be had."""
    listing = root / "ImageSets" / task / f"{split}.txt"
    absent = next((folder for folder in (root, listing.parent) if not folder.is_dir()), None)
    if absent:
        raise ConfigError(
            f"{absent}: no such folder; a year of PASCAL VOC (VOCdevkit/VOC2007, with ImageSets) is needed: "
            f"torchvision.datasets.VOCDetection(DIR, YEAR, {split!r}, download=True) fetches one; also from {_VOC}"
        )
    if not listing.is_file():
        # Names with an underscore are lists of one class.
        splits = sorted(p.stem for p in listing.parent.glob("*.txt") if "_" not in p.stem)
        raise ConfigError(f"{listing}: no such split; available: {', '.join(splits) or 'none'}")
    try:
        return listing.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{listing}: cannot be read as a list of images: {first_line(error)}") from None


class VocTruth:
    """Ground truth of PASCAL VOC: ``ROOT/Annotations/*.xml``, ``JPEGImages``, ``ImageSets/Main/SPLIT.txt``.

    Attributes: ``objects``: image name -> list of (class, [x0, y0, x1, y1], difficult); ``classes``:
    sorted names; ``digest``: of the objects.

    Raises ConfigError for a split that is not there or cannot be read, and for annotations that are none.
    """

    def __init__(self, root: str | Path, split: str = "test"):
        self.root = Path(root)
        self.names = voc_split(self.root, "Main", split)
        self.objects = {name: self._read(self.root / "Annotations" / f"{name}.xml") for name in self.names}
        self.classes = sorted({kind for objects in self.objects.values() for kind, _, _ in objects})
        self.digest = digests.facts_digest(self.objects)

    def items(self, folder: str | Path | None = None) -> list[Item]:
        """The images, in ``JPEGImages`` or another folder, whatever their extension; ``target`` is the name."""
        folder = Path(folder or self.root / "JPEGImages")
        files = index_images(folder)
        return [
            Item(f"{name}.jpg", find_image(files, f"{name}.jpg") or folder / f"{name}.jpg", name)
            for name in self.names
        ]

    @staticmethod
    def _read(path: Path) -> list[tuple[str, list[float], bool]]:
        try:
            tree = xml.etree.ElementTree.parse(path)
            return [
                (
                    node.findtext("name").strip(),
                    [float(node.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")],
                    (node.findtext("difficult") or "0").strip() == "1",
                )
                for node in tree.iter("object")
            ]
        except (OSError, xml.etree.ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: not a PASCAL VOC annotation: {error}") from None


class VocEvaluator(Evaluator):
    """A detector's finds, scored as PASCAL VOC does. A record holds [class, score, x0, y0, x1, y1] of
    each.
    """

    def __init__(self, detector: Detector, truth: VocTruth, eleven_points: bool = True):
        super().__init__()
        self.detector, self.truth, self.eleven_points = detector, truth, eleven_points
        self.headline = ("mAP",)
        self.metrics = ("mAP", *(f"AP {name}" for name in truth.classes))
        self.name = detector.name
        self.identity = f"{detector.identity} VOC of {truth.classes}"
        named = dict(enumerate(truth.classes))
        self.labels = {label: named[id] for label, id in detector.translate(named, str(truth.root)).items()}

    prepare = staticmethod(CocoEvaluator.prepare)

    def process(self, items: Sequence[Item], prepared: Sequence[Tensor]) -> None:
        for item, found in zip(items, self.detector(prepared), strict=True):
            rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
            # VOC counts pixels from one, and the last one belongs to a box.
            self.records[item.key] = {
                "name": item.target,
                "detections": [
                    [self.labels[label], score, x0 + 1, y0 + 1, x1, y1]
                    for label, score, (x0, y0, x1, y1) in rows
                    if label in self.labels
                ],
            }

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """AP per class and their mean over classes that occur, in percent."""
        names = [record["name"] for record in records.values()]
        scores: dict[str, float | None] = {}
        for kind in self.truth.classes:
            truth = {n: [(box, hard) for k, box, hard in self.truth.objects[n] if k == kind] for n in names}
            found = [(d[1], r["name"], d[2:]) for r in records.values() for d in r["detections"] if d[0] == kind]
            value = voc_average_precision(truth, found, self.eleven_points)
            scores[f"AP {kind}"] = None if value is None else 100 * value
        there = [value for value in scores.values() if value is not None]
        return {"mAP": sum(there) / len(there) if there else None, **scores}


def voc_average_precision(
    truth: dict[str, list[tuple[list[float], bool]]],
    found: list[tuple[float, str, list[float]]],
    eleven_points: bool,
) -> float | None:
    """Average precision of one class in [0, 1]; None where there is nothing to find.

    Args:
        truth: per image, (box, difficult) of every object; boxes x0, y0, x1, y1 with inclusive ends.
        found: (score, image, box) of every detection.
        eleven_points: average precision over recalls 0, .1, ... 1 (2007) rather than over all recalls.
    """
    positives = sum(not hard for boxes in truth.values() for _, hard in boxes)
    if not positives:
        return None
    claimed = {name: [False] * len(boxes) for name, boxes in truth.items()}
    right, wrong = [], []
    for _, name, box in sorted(found, key=lambda f: -f[0]):
        overlaps = [_overlap(box, other) for other, _ in truth.get(name, [])]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= _VOC_OVERLAP
        if hit and truth[name][best][1]:
            continue  # difficult: neither right nor wrong
        fresh = hit and not claimed[name][best]
        if fresh:
            claimed[name][best] = True
        right.append(fresh)
        wrong.append(not fresh)
    hits = np.cumsum(right) if right else np.zeros(0)
    recall = hits / positives
    precision = hits / (np.arange(len(hits)) + 1)
    # Precision at a recall is the best at that recall or beyond.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        at = [envelope[recall >= t - 1e-12][:1].sum() for t in np.linspace(0, 1, 11)]
        return float(np.mean(at))
    steps = np.diff(np.concatenate([[0.0], recall]))
    return float(np.sum(steps * envelope))


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of boxes whose last pixels belong to them."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (areas - width * height)
