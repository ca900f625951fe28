"""Class labels: formats and errors."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from task_helpers import IMAGENET, NEEDS_IMAGENET, make_grays

from ugicm.errors import ConfigError, MissingPackageError
from ugicm.evaluation.tasks import labels
from ugicm.evaluation.tasks.sources import DecodedFolder


@pytest.fixture
def grays(tmp_path) -> Path:
    return make_grays(tmp_path)


def test_labels_folder_and_file_formats(tmp_path, make_image):
    folder = tmp_path / "set"
    names = ["n01440764/a.png", "n01443537/b.png", "n01443537/c.png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_image().save(folder / name)
    expected = {"n01440764/a.png": 0, "n01443537/b.png": 1, "n01443537/c.png": 1}

    def targets(*arguments):
        return {item.key: item.target for item in labels.labeled_images(*arguments).items}

    assert targets(folder) == expected and labels.is_labeled(folder)
    for text in (
        "file,class_index,author\nn01440764/a.webp,0,x\nn01443537/b.webp,1,y\nn01443537/c.webp,1,z\n",
        "n01440764/a.png,n01440764\nn01443537/b.png,n01443537\nn01443537/c,1\n",
        "n01440764/a.JPEG 0\nn01443537/b.JPEG 1\nn01443537/c.JPEG 1\n",
        "ImageId,PredictionString\nn01440764/a,n01440764 1 2 3 4\nn01443537/b,n01443537 1 2 3 4 n01443537 0 0 1 1\n"
        "n01443537/c,n01443537 1 2 3 4\n",
    ):
        (tmp_path / "labels.txt").write_text(text)
        assert targets(folder, tmp_path / "labels.txt") == expected, text


def test_labels_development_kit(tmp_path, make_image):
    from scipy.io import savemat

    folder = tmp_path / "val"
    folder.mkdir()
    for index in (1, 2):
        make_image().save(folder / f"ILSVRC2012_val_{index:08d}.png")
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n1\n")
    with pytest.raises(ConfigError, match="need its meta.mat"):
        labels.labeled_images(folder, truth)
    rows = [(1, "n01443537", "goldfish"), (2, "n01440764", "tench")]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O")])
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    assert [item.target for item in labels.labeled_images(folder, truth).items] == [0, 1]
    truth.write_text("2\n")
    with pytest.raises(ConfigError, match="1 labels for 2 images"):
        labels.labeled_images(folder, truth)
    (tmp_path / "meta.mat").write_bytes(b"garbage" * 100)
    with pytest.raises(ConfigError, match="meta.mat: not the meta.mat of ImageNet's development kit"):
        labels.labeled_images(folder, truth)


def test_labels_wordnet_ids_require_timm(tmp_path, make_image, monkeypatch):
    (tmp_path / "n01440764").mkdir()
    make_image().save(tmp_path / "n01440764" / "a.png")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    labels.imagenet_indices.cache_clear()
    with pytest.raises(MissingPackageError, match=r'WordNet ids needs timm: pip install .*\[eval\]"'):
        labels.labeled_images(tmp_path)


def test_labels_ignore_hidden_files(grays):
    for name in ("0/._00.png", ".cache/0/00.png"):
        (grays / name).parent.mkdir(parents=True, exist_ok=True)
        (grays / name).write_bytes(b"not an image")
    items = labels.labeled_images(grays).items
    assert len(items) == 20 and {path for path in DecodedFolder(grays).files.values()} == {i.path for i in items}


def test_labels_invalid(grays, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file,class_index\n0/00.png,0\n0/xx.png,1\n")
    with pytest.raises(ConfigError, match="1 of 2 labels have no image.*0/xx.png"):
        labels.labeled_images(grays, table)
    table.write_text("file,class_index\n0/00.png,0\n")
    with pytest.raises(ConfigError, match="19 of 20 images.*no label.*0/10.png.*and 16 more"):
        labels.labeled_images(grays, table)
    for text, message in (
        ("a,b,c\n1,2,3\n", "expected columns"),
        ("0/00.png,dog\n", "'dog' is neither an index nor a WordNet id"),
        ("0/00.png,n99999999\n", "not one of ImageNet's"),
        ("", "empty"),
        ("ImageId,PredictionString\n0/00.png,\n", "too few columns: '0/00.png'"),
        ("file,class_index\n0/00.png," + "1" * 140000, "cannot be read as a label file: field larger"),
        ("0/00.png " + "1" * 5000, "cannot be read as a label file"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            labels.labeled_images(grays, table)
    labeled = labels.labeled_images(grays)
    with pytest.raises(ConfigError, match="net has 5 classes, but .* has class index 9"):
        labels.check_classes(labeled, 5, "net")
    for number in range(10):
        (grays / str(number)).rename(grays / f"class {number}")
    named = labels.labeled_images(grays)
    labels.check_classes(named, 10, "net")
    with pytest.raises(ConfigError, match="net has 1000 classes, but there are 10 class folders"):
        labels.check_classes(named, 1000, "net")
    with pytest.raises(ConfigError, match="no such folder"):
        labels.labeled_images(tmp_path / "none")
    with pytest.raises(ConfigError, match="label file"):
        labels.labeled_images(grays.parent)


@NEEDS_IMAGENET
def test_labels_imagenet_eval():
    with open(IMAGENET / "labels.csv", newline="") as file:
        rows = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    items = labels.labeled_images(IMAGENET).items
    assert {item.key: item.target for item in items} == rows
    assert all(labels.imagenet_indices()[item.key.split("/")[0]] == item.target for item in items)


@pytest.mark.parametrize("classes", [999, 1001, 21843])
def test_labels_of_imagenet_need_its_1000_classes(classes, tmp_path, make_image):
    """A network of TensorFlow's 1001 classes counts from the background, one of ImageNet-21k otherwise."""
    (tmp_path / "set" / "n01443537").mkdir(parents=True)
    make_image().save(tmp_path / "set" / "n01443537" / "a.png")
    folders = labels.labeled_images(tmp_path / "set")
    (tmp_path / "labels.csv").write_text("n01443537/a.png,n01443537\n")
    named = labels.labeled_images(tmp_path / "set", tmp_path / "labels.csv")
    for labeled in (folders, named):
        labels.check_classes(labeled, 1000, "net")
        with pytest.raises(ConfigError, match=f"net has {classes} classes, but the labels are WordNet ids .* 1000 "):
            labels.check_classes(labeled, classes, "net")
    # Numbers may be those of the network.
    (tmp_path / "labels.csv").write_text("n01443537/a.png,2\n")
    numbered = labels.labeled_images(tmp_path / "set", tmp_path / "labels.csv")
    if classes == 999:
        labels.check_classes(numbered, classes, "net")
    else:
        with pytest.warns(UserWarning, match=f"net has {classes} classes .*: the labels must be their numbers"):
            labels.check_classes(numbered, classes, "net")


@pytest.mark.parametrize(
    "rows, message",
    [
        ("0/00.png,0\n0/00.png,1\n", "two rows of 0/00.png; each image has one class"),
        ("0/00.png,0\n0/00.jpg,1\n", "0/00.png and 0/00.jpg both match .*00.png"),
    ],
)
def test_labels_two_of_one_image(rows, message, grays, tmp_path):
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(ConfigError, match=f"labels.csv: {message}"):
        labels.labeled_images(grays, tmp_path / "labels.csv")


def test_labels_development_kit_counts_numbers(tmp_path, make_image):
    """Line n is the class of image n, also if numbers have no leading zeros."""
    from scipy.io import savemat

    (tmp_path / "val").mkdir()
    for index in (1, 2, 10):
        make_image().save(tmp_path / "val" / f"val_{index}.png")
    rows = [(1, "n01440764", "tench"), (2, "n01443537", "goldfish"), (3, "n01484850", "great white shark")]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O")])
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    (tmp_path / "truth.txt").write_text("1\n2\n3\n")
    items = labels.labeled_images(tmp_path / "val", tmp_path / "truth.txt").items
    assert {item.key: item.target for item in items} == {"val_1.png": 0, "val_2.png": 1, "val_10.png": 2}


def test_class_names_blank_line(tmp_path):
    (tmp_path / "names.txt").write_text("a\n b \n\n\n")
    assert labels.read_class_names(tmp_path / "names.txt") == ["a", "b"]
    (tmp_path / "names.txt").write_text("a\n\nb\n")
    with pytest.raises(ConfigError, match="names.txt: line 2 is blank; each line is the name of one class"):
        labels.read_class_names(tmp_path / "names.txt")


def test_labels_of_names_that_are_not_text(tmp_path, make_image):
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
            make_image().save(file, "PNG")
    except OSError:
        pytest.skip("this file system has no such names")
    make_image().save(tmp_path / "b.png")
    (tmp_path / "labels.csv").write_bytes(b"file,label\ncaf\xe9.png,3\nb.png,5\n")
    assert {item.target for item in labels.labeled_images(tmp_path).items} == {3, 5}
