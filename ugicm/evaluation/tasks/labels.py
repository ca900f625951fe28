"""Images with class labels, from what people have on disk.

==============================  ==========================================================================
a folder per class              WordNet ids (``n01440764``), numbers, or any names when there are as many as
                                the judge has classes (sorted, as torchvision's ``ImageFolder``)
``labels.csv``, any csv         one row per image: its path and a class index or WordNet id; a header with
                                ``file`` and ``class_index``, ``label`` or ``wnid``, or two plain columns
``LOC_val_solution.csv``        as ImageNet comes from Kaggle
``val.txt``                     ``ILSVRC2012_val_00000001.JPEG 65`` per line, as Caffe has it
``ILSVRC2012_validation_        as in ImageNet's development kit, whose own class numbers are translated
ground_truth.txt``              by the ``meta.mat`` beside it
==============================  ==========================================================================

A label file's paths are relative to the image folder; extensions need not match.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ugicm.errors import ConfigError, first_line, first_of
from ugicm.evaluation.tasks.base import Item
from ugicm.files import IMAGE_SUFFIXES, find

_WNID = re.compile(r"n\d{8}")
_FILE_COLUMNS = ("file", "filename", "image", "path", "imageid", "name")
_CLASS_COLUMNS = ("class_index", "label", "class", "index", "target", "wnid", "synset", "predictionstring")


@cache
def imagenet_indices() -> dict[str, int]:
    """WordNet id -> class index of the 1000 ImageNet classes. Raises ConfigError without the package that knows."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        raise ConfigError("labels that are WordNet ids need the package timm: pip install 'ugicm[eval]'") from None

    return {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}


@dataclass(frozen=True)
class Labeled:
    """Images with class indices as targets, in order of their paths. ``classes``: how many there are,
    where class indices are no more than the order of folder names; None where they mean ImageNet's."""

    items: list[Item]
    classes: int | None = None


def labeled_images(folder: str | Path, labels: str | Path | None = None) -> Labeled:
    """Images of ``folder`` and their classes.

    Without ``labels``, ``labels.csv`` in the folder is taken, else its sub-folders are the classes.

    Raises ConfigError: no such folder, labels without image, images without label, labels that mean nothing;
    UsageError: no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    files = {path.relative_to(folder).as_posix(): path for path in find(folder, IMAGE_SUFFIXES)}
    if labels is None and (folder / "labels.csv").is_file():
        labels = folder / "labels.csv"
    if labels is None:
        return _from_folders(files, folder)
    rows = _read(Path(labels), files)
    by_stem: dict[str, list[str]] = {}
    for key in files:
        by_stem.setdefault(_stem(key), []).append(key)
    found: dict[str, int] = {}
    absent = []
    for name, target in rows.items():
        candidates = [name] if name in files else by_stem.get(_stem(name), by_stem.get(name, []))
        if len(candidates) != 1:
            absent.append(name)
        else:
            found[candidates[0]] = target
    if absent:
        raise ConfigError(
            f"{labels}: {len(absent)} of {len(rows)} labels belong to no image in {folder}: {first_of(absent)}"
        )
    unlabeled = [key for key in files if key not in found]
    if unlabeled:
        raise ConfigError(
            f"{labels}: {len(unlabeled)} of {len(files)} images in {folder} have no label: {first_of(unlabeled)}"
        )
    return Labeled([Item(key, files[key], found[key]) for key in sorted(found)])


def class_names(classes: int) -> list[str]:
    """What to call the classes of a judge of so many: ImageNet's names for a thousand, else numbers."""
    if classes == 1000:
        from torchvision.models import ResNet18_Weights

        return list(ResNet18_Weights.DEFAULT.meta["categories"])
    return [f"class {number}" for number in range(classes)]


def is_labeled(folder: str | Path) -> bool:
    """Whether a folder says by itself what its images show: ``labels.csv``, or WordNet ids for
    sub-folders.
    """
    folder = Path(folder)
    return (folder / "labels.csv").is_file() or any(_WNID.fullmatch(p.name) for p in folder.iterdir() if p.is_dir())


def check_classes(labeled: Labeled, classes: int, judge: str) -> None:
    """Raises ConfigError when labels do not fit a judge's number of classes."""
    if labeled.classes not in (None, classes):
        raise ConfigError(
            f"{judge} tells {classes} classes apart, but there are {labeled.classes} class folders, and their "
            "names do not say which ones; name them by WordNet id or class index, or give a label file"
        )
    highest = max(labeled.items, key=lambda item: item.target)
    if highest.target >= classes:
        raise ConfigError(
            f"{judge} tells {classes} classes apart, but {highest.key} has class index {highest.target}: "
            "this judge was made for other labels"
        )


def _stem(key: str) -> str:
    return key.rsplit(".", 1)[0] if key.lower().endswith(IMAGE_SUFFIXES) else key


def _from_folders(files: dict[str, Path], folder: Path) -> Labeled:
    loose = [key for key in files if "/" not in key]
    if loose:
        raise ConfigError(
            f"{folder}: {first_of(loose)} lie in no class folder and there is no labels.csv; "
            "name a label file (--labels)"
        )
    names, classes = sorted({key.split("/")[0] for key in files}), None
    if all(_WNID.fullmatch(name) for name in names):
        indices = {name: _class_index(name, folder) for name in names}
    elif all(name.isdecimal() for name in names):
        indices = {name: int(name) for name in names}
    else:
        indices, classes = {name: index for index, name in enumerate(names)}, len(names)
    return Labeled([Item(key, path, indices[key.split("/")[0]]) for key, path in files.items()], classes)


def _class_index(text: str, where) -> int:
    text = text.strip()
    if _WNID.fullmatch(text):
        if text not in imagenet_indices():
            raise ConfigError(f"{where}: {text} is not one of ImageNet's 1000 classes")
        return imagenet_indices()[text]
    if not text.isdecimal():
        raise ConfigError(f"{where}: class {text!r} is neither an index nor a WordNet id such as n01440764")
    return int(text)


def _read(path: Path, files: dict[str, Path]) -> dict[str, int]:
    """Class index by image name, from a label file of any of the kinds above. Raises ConfigError."""
    try:
        return _parsed(path, path.read_text(encoding="utf-8-sig"), files)
    except ConfigError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: cannot be read as a label file: {error}") from None


def _parsed(path: Path, text: str, files: dict[str, Path]) -> dict[str, int]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: empty label file")
    if all(line.strip().isdecimal() for line in lines):
        return _development_kit(path, [int(line) for line in lines], files)
    if "," not in lines[0]:
        pairs = [line.rsplit(None, 1) for line in lines]
        if any(len(pair) != 2 for pair in pairs):
            raise ConfigError(f"{path}: expected an image and its class on every line, got {lines[0]!r}")
        return {name: _class_index(label, path) for name, label in pairs}
    rows = list(csv.reader(lines))
    header = [cell.strip().lower() for cell in rows[0]]
    if header[:2] == ["imageid", "predictionstring"]:  # of the second column the first word; boxes follow it
        rows = [row[:1] + "".join(row[1:2]).split()[:1] for row in rows]
    name_column = next((header.index(c) for c in _FILE_COLUMNS if c in header), None)
    class_column = next((header.index(c) for c in _CLASS_COLUMNS if c in header), None)
    if name_column is None or class_column is None:
        if len(rows[0]) != 2:
            raise ConfigError(f"{path}: expected columns file and class_index, label or wnid, got {', '.join(rows[0])}")
        name_column, class_column, rows = 0, 1, [[], *rows]
    short = [row for row in rows[1:] if len(row) <= max(name_column, class_column)]
    if short:
        raise ConfigError(f"{path}: a row has too few columns: {','.join(short[0])!r}")
    return {row[name_column].strip(): _class_index(row[class_column], path) for row in rows[1:]}


def _development_kit(path: Path, numbers: list[int], files: dict[str, Path]) -> dict[str, int]:
    """ILSVRC2012_validation_ground_truth.txt: the n-th line is the kit's class number of the n-th image."""
    meta = path.parent / "meta.mat"
    if not meta.is_file():
        raise ConfigError(
            f"{path}: the development kit has its own order of classes; put its meta.mat beside this file"
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnids = {int(row[0]): str(row[1]) for row in synsets.tolist()}
    except Exception as error:  # scipy raises whatever a damaged file leads it into
        raise ConfigError(f"{meta}: not the meta.mat of ImageNet's development kit: {first_line(error)}") from None
    if len(numbers) != len(files):
        raise ConfigError(f"{path}: {len(numbers)} labels for {len(files)} images")
    try:
        return {
            key: _class_index(wnids[number], path)
            for key, number in zip(sorted(files, key=lambda k: Path(k).name), numbers, strict=True)
        }
    except KeyError as error:
        raise ConfigError(f"{path}: class number {error} is not in {meta}") from None
