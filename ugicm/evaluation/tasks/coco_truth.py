"""Ground truth in COCO's JSON format, and the checks that it shares with files of detections."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ugicm.data.instances import check_distinct, run_length_code
from ugicm.errors import ConfigError, ImageError, first_of
from ugicm.evaluation import digests
from ugicm.evaluation.tasks.agreement import index_coco
from ugicm.evaluation.tasks.base import Item
from ugicm.evaluation.tasks.sources import check_distinct_files, check_upright, find_image, index_images
from ugicm.extras import require_packages

# Exceptions that malformed JSON documents lead to.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


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
        except MALFORMED as error:
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
        check_boxes(self.path, [(a["bbox"], self.images[a["image_id"]]) for a in annotations])

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
                check_mask(annotation.get("segmentation"), width, height)
            except ValueError as error:
                raise ConfigError(f"{self.path}: annotation {annotation['id']}: {error}") from None

    def api(self):
        """Return the ground truth as an object of pycocotools."""
        # COCOeval interprets annotation id 0 as "no match" and keeps only one annotation per id.
        annotations = [{**a, "id": number} for number, a in enumerate(self.document["annotations"], 1)]
        return index_coco({"info": {}, **self.document, "annotations": annotations})


def _check_annotation(annotation: dict) -> None:
    """Raise one of ``MALFORMED`` for an annotation that pycocotools cannot process."""
    for key in ("id", "image_id", "category_id"):
        annotation[key]
    read_box(annotation["bbox"])
    if not math.isfinite(annotation["area"]):
        raise ValueError(f"an annotation's area is {annotation['area']}")
    int(annotation["iscrowd"])


def read_box(values: Sequence[float]) -> list[float]:
    """Return x, y, width, height. Raise ValueError or TypeError if the values are not finite numbers."""
    box = [float(value) for value in values]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"the bbox {box} is not x, y, width, height")
    return box


def check_boxes(path: str | Path, boxes: Sequence[tuple[Sequence[float], tuple[str, int, int]]]) -> None:
    """Raise ConfigError if boxes are not x, y, width, height in pixels, but relative or corners.

    ``boxes`` are given with file name, width and height of their images.
    """
    relative = all(max(box) <= 1 for box, _ in boxes)
    outside = sum(x + w > width + 1 or y + h > height + 1 for (x, y, w, h), (_, width, height) in boxes)
    if boxes and (relative or 2 * outside > len(boxes)):
        found = "all are in [0, 1]" if relative else f"{outside} of {len(boxes)} leave their images"
        raise ConfigError(f"{path}: boxes must be x, y, width, height in pixels, but {found}")


def check_mask(segmentation: list | dict | None, width: int, height: int) -> None:
    """Raise ValueError if a segmentation is invalid for an image of that size."""
    if not segmentation:
        raise ValueError("it has no segmentation")
    if run_length_code(segmentation, height, width)["size"] != [height, width]:
        raise ValueError(f"its segmentation is not of {width}x{height}")
