"""Detection: mean average precision (mAP) of PASCAL VOC.

Computed as in the development kit. A detection is correct if its intersection over union with an object that no
detection of higher score has matched is at least 0.5. Pixel coordinates are inclusive, and difficult objects are
ignored. Precision is averaged over eleven recalls (2007) or over all recalls (2010 and later).
"""

from __future__ import annotations

import math
import xml.etree.ElementTree
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ugicm.errors import ConfigError, ImageError, first_line
from ugicm.evaluation import digests
from ugicm.evaluation.results import mean
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.detectors import Detector, prepare_detection
from ugicm.evaluation.tasks.sources import check_upright, find_image, index_images

_IOU_THRESHOLD = 0.5


def read_split(root: Path, task: str, split: str) -> list[str]:
    """Return the image names in ``ROOT/ImageSets/TASK/SPLIT.txt``. Raise ConfigError if they cannot be read."""
    listing = root / "ImageSets" / task / f"{split}.txt"
    if not listing.parent.is_dir():
        raise ConfigError(
            f"{listing.parent}: no such folder; pass a year of PASCAL VOC (VOCdevkit/VOC2007, with ImageSets), which "
            "torchvision.datasets.VOCDetection(..., download=True) downloads"
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

    Attributes:
        names: image names.
        objects: list of (class, [x0, y0, x1, y1], difficult) by image name.
        sizes: (width, height) by image name, or None if the annotation has no size.
        classes: sorted class names.
        digest: digest of ``objects``.

    Raise ConfigError if the split or an annotation cannot be read.
    """

    def __init__(self, root: str | Path, split: str = "test"):
        self.root = Path(root)
        self.names = read_split(self.root, "Main", split)
        read = {name: _read_annotation(self.root / "Annotations" / f"{name}.xml") for name in self.names}
        self.sizes = {name: size for name, (size, _) in read.items()}
        self.objects = {name: objects for name, (_, objects) in read.items()}
        self.classes = sorted({kind for objects in self.objects.values() for kind, _, _ in objects})
        self.digest = digests.facts_digest(self.objects)

    def items(self, folder: str | Path | None = None) -> list[Item]:
        """Return the images of ``JPEGImages`` or another folder, with any extension. The target is the image name."""
        folder = Path(folder or self.root / "JPEGImages")
        files = index_images(folder)
        keys = {f"{name}.jpg": name for name in self.names}
        return [Item(key, find_image(files, key) or folder / key, name) for key, name in keys.items()]


    def check_size(self, item: Item, image: Image.Image) -> None:
        """Raise ImageError if an image does not have the annotated size, or may be turned against its annotations."""
        size = self.sizes[item.target]
        if size not in (None, image.size):
            raise ImageError(
                f"{item.path}: the image is {image.width}x{image.height}, but its annotation says {size[0]}x{size[1]}"
            )
        check_upright(item.path, size)


def _read_annotation(path: Path) -> tuple[tuple[int, int] | None, list[tuple[str, list[float], bool]]]:
    """Return the annotated size, or None, and the objects. Raise ConfigError."""
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        objects = [
            (
                node.findtext("name").strip(),
                [float(node.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")],
                (node.findtext("difficult") or "0").strip() == "1",
            )
            for node in root.iter("object")
        ]
        for kind, box, _ in objects:
            if not all(map(math.isfinite, box)):
                raise ValueError(f"the box of {kind} is {box}")
        return (width, height) if width and height else None, objects
    except (OSError, xml.etree.ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a PASCAL VOC annotation: {error}") from None


class VocEvaluator(Evaluator):
    """Detections, scored as by PASCAL VOC. A record holds [class, score, x0, y0, x1, y1] of each detection."""

    headline = ("mAP",)
    def __init__(self, detector: Detector, truth: VocTruth, eleven_points: bool = True):
        super().__init__()
        self.detector, self.truth, self.eleven_points = detector, truth, eleven_points
        self.metrics = ("mAP", *(f"AP {name}" for name in truth.classes))
        self.name = detector.name
        self.prepare = partial(prepare_detection, truth)
        self.identity = f"{detector.identity} VOC of {truth.classes}"
        ids = detector.map_labels(dict(enumerate(truth.classes)), str(truth.root))
        self.labels = {label: truth.classes[id] for label, id in ids.items()}

    def process(self, items: Sequence[Item], inputs: Sequence[Tensor]) -> None:
        for item, output in zip(items, self.detector(inputs), strict=True):
            rows = zip(output["labels"].tolist(), output["scores"].tolist(), output["boxes"].tolist(), strict=True)
            # VOC counts pixels from 1, and the last one belongs to the box.
            self.records[item.key] = {
                "name": item.target,
                "detections": [
                    [self.labels[label], score, x0 + 1, y0 + 1, x1, y1]
                    for label, score, (x0, y0, x1, y1) in rows
                    if label in self.labels
                ],
            }

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return AP per class, and their mean over the classes that occur, in percent."""
        names = [record["name"] for record in records.values()]
        scores: dict[str, float | None] = {}
        for kind in self.truth.classes:
            truth = {n: [(box, hard) for k, box, hard in self.truth.objects[n] if k == kind] for n in names}
            detections = [(d[1], r["name"], d[2:]) for r in records.values() for d in r["detections"] if d[0] == kind]
            value = average_precision(truth, detections, self.eleven_points)
            scores[f"AP {kind}"] = None if value is None else 100 * value
        return {"mAP": mean(scores.values()), **scores}


def average_precision(
    truth: dict[str, list[tuple[list[float], bool]]],
    detections: list[tuple[float, str, list[float]]],
    eleven_points: bool,
) -> float | None:
    """Return the average precision of one class in [0, 1], or None if there are no objects.

    Args:
        truth: (box, difficult) of every object by image. Boxes are x0, y0, x1, y1, inclusive.
        detections: (score, image, box) of every detection.
        eleven_points: average over recalls 0, 0.1, ... 1 (2007) instead of over all recalls.
    """
    positives = sum(not hard for boxes in truth.values() for _, hard in boxes)
    if not positives:
        return None
    matched = {name: [False] * len(boxes) for name, boxes in truth.items()}
    correct = []
    for _, name, box in sorted(detections, key=lambda detection: -detection[0]):
        overlaps = [_iou(box, other) for other, _ in truth.get(name, [])]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= _IOU_THRESHOLD
        if hit and truth[name][best][1]:
            continue  # difficult
        correct.append(hit and not matched[name][best])
        if hit:
            matched[name][best] = True
    return mean_precision(correct, positives, np.linspace(0, 1, 11) if eleven_points else None)


def mean_precision(correct: Sequence[bool], positives: int, recalls: np.ndarray | None = None) -> float:
    """Return the mean precision of detections in descending order of score, over ``recalls`` or over all recalls.

    ``positives`` is the number of objects.
    """
    hits = np.cumsum(correct)
    recall = hits / positives
    precision = hits / (np.arange(len(hits)) + 1)
    # The interpolated precision at a recall is the maximum at this or a higher recall.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if recalls is None:
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    at = np.searchsorted(recall, recalls - 1e-12)
    return float(np.sum(envelope[at[at < len(hits)]]) / len(recalls))


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of boxes with inclusive coordinates."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (areas - width * height)
