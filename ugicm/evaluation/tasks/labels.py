"""Images with class labels, in the formats that are in common use.

==============================  ===========================================================================
a folder per class              WordNet ids (``n01440764``), class indices, or other names, which are sorted
                                and numbered as in torchvision's ``ImageFolder``
``labels.csv``, any csv file    one row per image: path, and class index or WordNet id. Columns are two, or
                                named in a header: ``file``, and ``class_index``, ``label`` or ``wnid``
``LOC_val_solution.csv``        ImageNet's validation set at Kaggle
``val.txt``                     ImageNet's validation set for Caffe: ``ILSVRC2012_val_00000001.JPEG 65``
``ILSVRC2012_validation_        ImageNet's development kit. Its class numbers are translated with the
ground_truth.txt``              ``meta.mat`` of the kit, which must be in the same folder
==============================  ===========================================================================

Paths in a label file are relative to the image folder. Extensions need not match.
"""

from __future__ import annotations

import csv
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ugicm.errors import ConfigError, first_line, first_of
from ugicm.evaluation.specs import natural_order
from ugicm.evaluation.tasks.base import Item
from ugicm.evaluation.tasks.sources import check_distinct_files, find_image, index_images
from ugicm.extras import require_packages

IMAGENET_CLASSES = 1000
# Numbers of classes that contain ImageNet's 1000 under other numbers.
_OTHER_IMAGENETS = {1001: "ImageNet after a background", 21841: "ImageNet-21k", 21843: "ImageNet-21k"}
_WNID = re.compile(r"n\d{8}")
_FILE_COLUMNS = ("file", "filename", "image", "path", "imageid", "name")
_CLASS_COLUMNS = ("class_index", "label", "class", "index", "target", "wnid", "synset", "predictionstring")


@dataclass(frozen=True)
class LabeledImages:
    """Images with class indices as targets, sorted by path.

    ``classes`` is the number of class folders if the indices only number the folders, else None. ``imagenet`` is
    whether labels are WordNet ids, and the indices those of ImageNet's 1000 classes.
    """

    items: list[Item]
    classes: int | None = None
    imagenet: bool = False


def labeled_images(folder: str | Path, labels: str | Path | None = None) -> LabeledImages:
    """Return the images of a folder with their classes.

    ``labels`` is a label file. Default: ``labels.csv`` in the folder, else the names of the sub-folders.

    Raise ConfigError if an image or a label is missing or invalid, UsageError if there are no images.
    """
    folder = Path(folder)
    index = index_images(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(set(index.values()))}
    if labels is None and (folder / "labels.csv").is_file():
        labels = folder / "labels.csv"
    if labels is None:
        return _from_folders(files, folder)
    rows, imagenet = _read(Path(labels), files)
    check_distinct_files([*rows], [find_image(index, name) for name in rows], labels)
    targets = {find_image(index, name): target for name, target in rows.items()}
    absent = [name for name in rows if find_image(index, name) is None]
    if absent:
        missing = f"{len(absent)} of {len(rows)} labels have no image in {folder}"
        raise ConfigError(f"{labels}: {missing}: {first_of(absent)}")
    unlabeled = [key for key, path in files.items() if path not in targets]
    if unlabeled:
        raise ConfigError(
            f"{labels}: {len(unlabeled)} of {len(files)} images in {folder} have no label: {first_of(unlabeled)}"
        )
    return LabeledImages([Item(key, path, targets[path]) for key, path in files.items()], imagenet=imagenet)


def is_labeled(folder: str | Path) -> bool:
    """Return whether a folder has ``labels.csv`` or sub-folders named by WordNet id."""
    folder = Path(folder)
    return (folder / "labels.csv").is_file() or any(_WNID.fullmatch(p.name) for p in folder.iterdir() if p.is_dir())


def check_classes(labeled: LabeledImages, classes: int, name: str) -> None:
    """Raise ConfigError if the labels do not fit the number of classes of the classifier ``name``."""
    if labeled.classes not in (None, classes):
        raise ConfigError(
            f"{name} has {classes} classes, but there are {labeled.classes} class folders whose names do not identify "
            "a class; name the folders by WordNet id or class index, or pass a label file"
        )
    if labeled.imagenet and classes != IMAGENET_CLASSES:
        raise ConfigError(
            f"{name} has {classes} classes, but the labels are WordNet ids of ImageNet's {IMAGENET_CLASSES} classes; "
            "use a classifier of these, or pass a label file with its class indices"
        )
    if classes in _OTHER_IMAGENETS:
        warnings.warn(f"{name} has {classes} classes ({_OTHER_IMAGENETS[classes]}): the labels must be their numbers, "
                      f"not those of ImageNet's {IMAGENET_CLASSES}", stacklevel=2)  # fmt: skip
    highest = max(labeled.items, key=lambda item: item.target)
    if highest.target >= classes:
        raise ConfigError(
            f"{name} has {classes} classes, but {highest.key} has class index {highest.target}; use a classifier that "
            "was trained on these classes"
        )


def class_names(classes: int) -> list[str]:
    """Return ImageNet's class names for 1000 classes, else numbered names."""
    if classes == IMAGENET_CLASSES:
        from torchvision.models import ResNet18_Weights

        return list(ResNet18_Weights.DEFAULT.meta["categories"])
    return [f"class {number}" for number in range(classes)]


def read_class_names(path: str | Path) -> list[str]:
    """Read class names, one per line. Raise ConfigError if the file cannot be read, or has a blank line within."""
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as class names: {error}") from None
    if "" in names:
        raise ConfigError(f"{path}: line {names.index('') + 1} is blank; each line is the name of one class")
    return names


@cache
def imagenet_indices() -> dict[str, int]:
    """Return the class index of each WordNet id of ImageNet's 1000 classes, which timm knows."""
    require_packages("eval", "a dataset whose labels are WordNet ids", "timm")
    from timm.data import ImageNetInfo

    return {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}


def _from_folders(files: dict[str, Path], folder: Path) -> LabeledImages:
    outside = [key for key in files if "/" not in key]
    if outside:
        raise ConfigError(
            f"{folder}: images outside a class folder, and no labels.csv: {first_of(outside)}; "
            "pass a label file with --labels"
        )
    names, classes = sorted({key.split("/")[0] for key in files}), None
    imagenet = all(map(_WNID.fullmatch, names))
    if imagenet or all(map(str.isdecimal, names)):
        indices = {name: _class_index(name, folder) for name in names}
    else:
        indices, classes = {name: index for index, name in enumerate(names)}, len(names)
    items = [Item(key, path, indices[key.split("/")[0]]) for key, path in files.items()]
    return LabeledImages(items, classes, imagenet)


def _class_index(text: str, where: Path) -> int:
    text = text.strip()
    if _WNID.fullmatch(text):
        if text not in imagenet_indices():
            raise ConfigError(f"{where}: {text} is not one of ImageNet's 1000 classes")
        return imagenet_indices()[text]
    if not text.isdecimal():
        raise ConfigError(f"{where}: class {text!r} is neither an index nor a WordNet id such as n01440764")
    return int(text)


def _read(path: Path, files: dict[str, Path]) -> tuple[dict[str, int], bool]:
    """Return the class index by image name from a label file in any format above, and whether it has WordNet ids.

    Raise ConfigError.
    """
    try:
        # Names of files need not be text.
        return _parse(path, path.read_text(encoding="utf-8-sig", errors="surrogateescape"), files)
    except ConfigError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: an integer of thousands of digits
        raise ConfigError(f"{path}: cannot be read as a label file: {error}") from None


def _parse(path: Path, text: str, files: dict[str, Path]) -> tuple[dict[str, int], bool]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: the label file is empty")
    if all(line.strip().isdecimal() for line in lines):
        return _development_kit(path, [int(line) for line in lines], files), True
    rows = list(csv.reader(lines)) if "," in lines[0] else [line.rsplit(None, 1) for line in lines]
    header = [cell.strip().lower() for cell in rows[0]]
    if header[:2] == ["imageid", "predictionstring"]:  # the class is the first word of the second column
        rows = [row[:1] + "".join(row[1:2]).split()[:1] for row in rows]
    columns = [next((header.index(c) for c in names if c in header), None) for names in (_FILE_COLUMNS, _CLASS_COLUMNS)]
    if None not in columns:
        rows = rows[1:]
    elif len(header) == 2:
        columns = [0, 1]
    else:
        raise ConfigError(f"{path}: expected columns file and class_index, label or wnid, got {', '.join(header)}")
    short = [row for row in rows if len(row) <= max(columns)]
    if short:
        row = ",".join(short[0])
        raise ConfigError(f"{path}: a row has too few columns: {row!r}; each needs an image and its class")
    names, classes = ([row[column].strip() for row in rows] for column in columns)
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two rows of {max(names, key=names.count)}; each image has one class")
    targets = {name: _class_index(text, path) for name, text in zip(names, classes, strict=True)}
    return targets, any(map(_WNID.fullmatch, classes))


def _development_kit(path: Path, numbers: list[int], files: dict[str, Path]) -> dict[str, int]:
    """Translate ILSVRC2012_validation_ground_truth.txt: line n is the kit's class number of image n."""
    meta = path.parent / "meta.mat"
    if not meta.is_file():
        raise ConfigError(f"{path}: class numbers of the development kit need its meta.mat: copy it to {path.parent}")
    require_packages("eval", meta.name, "scipy")
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnids = {int(row[0]): str(row[1]) for row in synsets.tolist()}
    except Exception as error:  # scipy raises many kinds on corrupt files
        raise ConfigError(f"{meta}: not the meta.mat of ImageNet's development kit: {first_line(error)}") from None
    if len(numbers) != len(files):
        raise ConfigError(f"{path}: {len(numbers)} labels for {len(files)} images")
    unknown = [str(number) for number in numbers if number not in wnids]
    if unknown:
        raise ConfigError(f"{path}: class numbers that are not in {meta}: {first_of(unknown)}")
    keys = sorted(files, key=lambda key: natural_order(Path(key).name))
    return {key: _class_index(wnids[number], path) for key, number in zip(keys, numbers, strict=True)}
