"""Object masks of training images, from a COCO json: annotated by people, or proposed by make_instances.py."""

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

FAR = 4  # times the image's longer side: an outline's points are nearer
SMALLEST = 16  # pixels: an object whose visible part has a shorter side teaches nothing


class Instances:
    """Masks by image. Polygons and run-length codes; crowds are left out.

    Args:
        path: a COCO json ("images", "annotations"; categories are not used).
        files: the images masks are asked for. One is found by the end of its path, which must be the whole name in
            the json, folders included: images of several folders may be called alike.

    Raises ConfigError for a file that cannot be read, is no such json, or knows none of the images.
    """

    def __init__(self, path: str | os.PathLike, files: Sequence[Path]):
        try:
            import pycocotools  # noqa: F401  (found missing before a large file is read)
        except ImportError:
            raise ConfigError(f"{path}: reading instances needs the package pycocotools") from None
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            by_name, by_image = _parsed(content)
            # Ours are of images as they are seen; others' may be of the pixels as they are stored.
            self.of_upright = "made_by" in content.get("info", {})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            wrong = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(f"{path}: not a COCO json with images and annotations: {wrong}") from None
        self._codes: dict[Path, list[dict]] = {}
        for file in files:
            ends = (file.as_posix(), *("/".join(file.parts[-n:]) for n in range(len(file.parts), 0, -1)))
            number = next((by_name[end] for end in ends if end in by_name), None)
            if number is not None:
                self._codes[file] = by_image.get(number, [])
        if files and not self._codes:
            raise ConfigError(f"{path}: none of the {len(files)} images is in it, first {files[0].name}")

    def __contains__(self, file: Path) -> bool:
        return bool(self._codes.get(file))

    def count(self, file: Path) -> int:
        return len(self._codes.get(file, ()))

    def size(self, file: Path, number: int) -> tuple[int, int]:
        """Height and width of the mask, which need not be those of the image; without decoding it."""
        height, width = self._codes[file][number]["size"]
        return int(height), int(width)

    def mask(self, file: Path, number: int) -> Tensor:
        """uint8 [1, H, W] of 0 and 1, in the annotated image's size."""
        from pycocotools import mask

        return torch.from_numpy(np.ascontiguousarray(mask.decode(self._codes[file][number])))[None]


def _parsed(content: dict) -> tuple[dict[str, Any], dict[Any, list[dict]]]:
    """(image's id by its path, run-length codes by image's id). Raises what malformed content leads
    to: ValueError, LookupError, TypeError, AttributeError."""
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


def run_length_code(segmentation: list | dict, height: int, width: int) -> dict:
    """Any COCO segmentation of an image (polygons, or run lengths as numbers or as text) -> one compressed run-length
    code: "size" [H, W] (that of given run lengths is kept) and "counts".

    Raises ValueError for what is none, for outlines far outside, and for run lengths that do not fill their size:
    pycocotools would refuse those only when they are decoded, and compare them with others for ever.
    """
    from pycocotools import mask

    try:
        if not isinstance(segmentation, dict):
            far = FAR * max(height, width)
            if not all(abs(value) <= far for outline in segmentation for value in outline):  # nor where it is no number
                raise ValueError("its outline leaves the image by far")  # pycocotools would crash the process
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
        raise ValueError(f"bad segmentation: its run lengths do not fill {columns}x{rows}")
    return code


def _runs(counts: bytes) -> list[int]:
    """Run lengths from COCO's text of them: five bits a character, all but the first three less those two before."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the number's last character, which holds its sign
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the text of its run lengths ends within a number")
    return runs


def bounding_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """uint8 [H, W] -> (top, left, bottom, right), or None where the mask is empty."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
