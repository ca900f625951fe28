"""Object masks of training images, from COCO annotations or from scripts/make_instances.py."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugicm.errors import ConfigError, first_line
from ugicm.extras import require_packages

MAX_COORDINATE = 4  # of a polygon's points, in units of the image's longer side
MIN_SIDE = 16  # pixels of the shorter side of an object's visible part, below which it is not used


class Instances:
    """Masks by image, from polygons and run-length codes. Crowd annotations are ignored.

    Args:
        path: JSON file in COCO's format ("images", "annotations"; categories are not used).
        files: the images whose masks are needed. The file name in the JSON, folders included, must equal the end of an
            image's path: different folders may contain equal names.

    Raises ConfigError if the file cannot be read, is not in COCO's format, or has none of the images.
    """

    def __init__(self, path: str | os.PathLike, files: Sequence[Path]):
        require_packages("train", f"{path}: reading instances", "pycocotools")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            by_name, by_image = _parse(content)
            # Masks of make_instances.py are of the upright image; others may be of the pixels as stored.
            self.upright = "made_by" in content.get("info", {})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            wrong = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(f"{path}: not COCO JSON with images and annotations: {wrong}") from None
        self._codes: dict[Path, list[dict]] = {}
        for file in files:
            ends = (file.as_posix(), *("/".join(file.parts[-n:]) for n in range(len(file.parts), 0, -1)))
            number = next((by_name[end] for end in ends if end in by_name), None)
            if number is not None:
                self._codes[file] = by_image.get(number, [])
        if files and not self._codes:
            raise ConfigError(f"{path}: contains none of the {len(files)} images, such as {files[0].name}")

    def __contains__(self, file: Path) -> bool:
        return bool(self._codes.get(file))

    def count(self, file: Path) -> int:
        return len(self._codes.get(file, ()))

    def size(self, file: Path, number: int) -> tuple[int, int]:
        """Return (height, width) of a mask without decoding it; the image's may differ."""
        height, width = self._codes[file][number]["size"]
        return int(height), int(width)

    def mask(self, file: Path, number: int) -> Tensor:
        """Return a mask of 0 and 1, uint8 [1, H, W], in the size of the annotated image."""
        from pycocotools import mask

        return torch.from_numpy(np.ascontiguousarray(mask.decode(self._codes[file][number])))[None]


def _parse(content: dict) -> tuple[dict[str, Any], dict[Any, list[dict]]]:
    """Return (image id by path, run-length codes by image id).

    Raises ValueError, LookupError, TypeError or AttributeError for malformed content.
    """
    check_distinct("images have the id", [image["id"] for image in content["images"]])
    check_distinct("images have the file_name", [image["file_name"] for image in content["images"]])
    images = {image["id"]: image for image in content["images"]}
    by_name = {Path(image["file_name"]).as_posix(): number for number, image in images.items()}
    by_image: dict[Any, list[dict]] = {}
    for annotation in content["annotations"]:
        image = images.get(annotation.get("image_id"))
        if image is None or annotation.get("iscrowd") or not annotation.get("segmentation"):
            continue
        try:
            code = run_length_code(annotation["segmentation"], image["height"], image["width"])
        except ValueError as error:
            raise ValueError(f"annotation {annotation.get('id')}: {error}") from None
        by_image.setdefault(image["id"], []).append(code)
    return by_name, by_image


def check_distinct(what: str, values: Sequence) -> None:
    """Raise ConfigError if two values are equal, as in "two images have the id 5"."""
    if len(set(values)) < len(values):
        raise ConfigError(f"two {what} {max(values, key=values.count)}; give each its own")


def run_length_code(segmentation: list | dict, height: int, width: int) -> dict:
    """Convert a COCO segmentation to one compressed run-length code of "size" [H, W] and "counts".

    ``segmentation`` is a list of polygons in an image of ``height`` x ``width``, or run lengths (numbers or text) with
    a size of their own. Raises ValueError if it is malformed, a polygon leaves the image by far, or run lengths do not
    add up to their size: pycocotools does not check the latter, and crashes or loops on them.
    """
    from pycocotools import mask

    try:
        if not isinstance(segmentation, dict):
            limit = MAX_COORDINATE * max(height, width)
            if not all(abs(value) <= limit for outline in segmentation for value in outline):  # also false for NaN
                raise ValueError("polygon far outside the image")  # crashes pycocotools
            return mask.merge(mask.frPyObjects(segmentation, height, width))
        if isinstance(segmentation["counts"], list):
            code = mask.frPyObjects(segmentation, height, width)
        else:
            counts = segmentation["counts"]
            code = {**segmentation, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
        rows, columns = code["size"]
        runs = _runs(code["counts"])
    except Exception as error:  # pycocotools raises many kinds on malformed shapes
        raise ValueError(f"bad segmentation: {first_line(error)}") from None
    if min(rows, columns, *runs) < 0 or sum(runs) != rows * columns:
        raise ValueError(f"bad segmentation: run lengths do not add up to {columns}x{rows}")
    return code


def _runs(counts: bytes) -> list[int]:
    """Decode COCO's run-length text: 5 bits per character; from the fourth on, differences to the run two before."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:  # pycocotools would end the text there, or read another number
            raise ValueError("invalid character in run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # last character of a number, with its sign
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return runs


def bounding_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """Return (top, left, bottom, right) of a mask uint8 [H, W], or None if it is empty."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
