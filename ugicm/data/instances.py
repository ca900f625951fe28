"""Object masks of training pictures, from a COCO json: annotated by people, or proposed by make_instances.py."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugicm.errors import ConfigError

SMALLEST = 16  # pixels: an object whose visible part has a shorter side teaches nothing


class Instances:
    """Masks by picture. Polygons and run-length codes; crowds are left out.

    Args:
        path: a COCO json ("images", "annotations"; categories are not used).
        files: the pictures masks are asked for, found by the end of their path, else by their name.

    Raises ConfigError for a file that cannot be read, is no such json, or knows none of the pictures.
    """

    def __init__(self, path: str | os.PathLike, files: Sequence[Path]):
        try:
            from pycocotools import mask as coding
        except ImportError:
            raise ConfigError(f"{path}: reading instances needs the package pycocotools") from None
        self._coding = coding
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            images = {image["id"]: image for image in content["images"]}
            annotations = content["annotations"]
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a COCO json with images and annotations: {error}") from None
        by_image: dict[Any, list[dict]] = {}
        for annotation in annotations:
            image = images.get(annotation.get("image_id"))
            if image is None or annotation.get("iscrowd") or not annotation.get("segmentation"):
                continue
            by_image.setdefault(image["id"], []).append(self._encode(annotation, image, path))
        by_name: dict[str, Any] = {}
        for number, image in images.items():
            by_name[Path(image["file_name"]).as_posix()] = number
            by_name.setdefault(Path(image["file_name"]).name, number)
        self._codes: dict[Path, list[dict]] = {}
        for file in files:
            ends = (file.as_posix(), *("/".join(file.parts[-n:]) for n in range(len(file.parts), 0, -1)))
            number = next((by_name[end] for end in ends if end in by_name), None)
            if number is not None:
                self._codes[file] = by_image.get(number, [])
        if files and not self._codes:
            raise ConfigError(f"{path}: none of the {len(files)} pictures is in it, first {files[0].name}")

    def _encode(self, annotation: dict, image: dict, path: str | os.PathLike) -> dict:
        """Any COCO segmentation -> one compressed run-length code."""
        height, width = image["height"], image["width"]
        shape = annotation["segmentation"]
        try:
            if isinstance(shape, dict):
                if isinstance(shape["counts"], list):
                    return self._coding.frPyObjects(shape, height, width)
                counts = shape["counts"]
                return {**shape, "counts": counts.encode() if isinstance(counts, str) else counts}
            return self._coding.merge(self._coding.frPyObjects(shape, height, width))
        except Exception as error:  # pycocotools raises many kinds on malformed shapes
            raise ConfigError(f"{path}: annotation {annotation.get('id')}: bad segmentation: {error}") from None

    def __contains__(self, file: Path) -> bool:
        return bool(self._codes.get(file))

    def count(self, file: Path) -> int:
        return len(self._codes.get(file, ()))

    def mask(self, file: Path, number: int) -> Tensor:
        """uint8 [1, H, W] of 0 and 1, in the annotated picture's size."""
        return torch.from_numpy(np.ascontiguousarray(self._coding.decode(self._codes[file][number])))[None]


def bounding_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """uint8 [H, W] -> (top, left, bottom, right), or None where the mask is empty."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
