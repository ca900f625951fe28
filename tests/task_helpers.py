"""Helpers of the task tests: a classifier of known predictions, small datasets, and the task scripts."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from ugicm.evaluation.tasks import classifiers

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
IMAGENET, COCO = SHARED / "data" / "imagenet_eval", SHARED / "data" / "coco_val"
SQUEEZENET = SHARED / "weights" / "squeezenet1_1_rgb01.pth"
NEEDS_IMAGENET = pytest.mark.skipif(not IMAGENET.is_dir(), reason="needs ../shared/data/imagenet_eval")
NEEDS_COCO = pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/data/coco_val")


# A file with detectors in torchvision's conventions, and what is none.
BRIGHT_DETECTOR = """
import torch


class Bright(torch.nn.Module):
    \"\"\"Finds the bright part of an image, as a dog by COCO's category ids.\"\"\"

    def forward(self, images):
        return [find(image) for image in images]


def find(image):
    y, x = torch.nonzero(image[0] > 0.6, as_tuple=True)
    if not len(y):
        return dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0),
                    masks=torch.zeros(0, 1, *image.shape[1:]))
    box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()[None]
    return dict(boxes=box, labels=torch.tensor([18]), scores=torch.tensor([0.9]),
                masks=(image[:1] > 0.6).float()[None])


def build():
    return Bright()


def detect(images):
    return [find(image) for image in images]


def image(images):
    return images[0]


number = 5
"""


def script(name: str):
    """Return the ``main`` function of a script, such as "classification/test"."""
    specification = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


class Brightness(nn.Module):
    """A classifier whose prediction is the brightness of an image in steps of 1/classes."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.classes = classes
        self.register_buffer("centers", (torch.arange(classes) + 0.5) / classes)

    def forward(self, x):
        return -(x.mean((1, 2, 3))[:, None] - self.centers).abs()


def brightness_classifier(classes: int = 10) -> classifiers.Classifier:
    preprocess = classifiers.Preprocess(0, 0, "bilinear", *classifiers.NORMALIZATIONS["none"])
    return classifiers.Classifier("brightness", Brightness(classes), preprocess, classes, "cpu", "brightness")


def make_grays(tmp_path: Path) -> Path:
    """Write 20 images of ten brightness classes and of several sizes, in a folder per class. Return the folder."""
    folder = tmp_path / "grays"
    for index in range(20):
        level = int(255 * (index % 10 + 0.5) / 10)
        place = folder / str(index % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16 + index % 3, 12), (level,) * 3).save(place / f"{index:02d}.png")
    return folder


_SAVED: dict = {}


def save(model: nn.Module) -> Path:
    """Write the weights of a model to a temporary file, as a training script with DataParallel would."""
    folder = _SAVED.setdefault("folder", tempfile.TemporaryDirectory())
    path = Path(folder.name) / f"{len(_SAVED)}.pth"
    _SAVED[path] = True
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


def classification_arguments(grays: Path) -> list[str]:
    """Return arguments of the classification script: the gray images and a small SqueezeNet with random weights."""
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=10)
    return ["-d", str(grays), "--classifiers", f"squeezenet1_1={save(model)}:resize=40:crop=32", "--device", "cpu"]


def make_voc(tmp_path: Path, make_image) -> Path:
    """Write two images in the layout of PASCAL VOC 2007, with boxes and masks. Return the folder."""
    root = tmp_path / "VOC2007"
    for part in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    names = ["000001", "000002"]
    for index, name in enumerate(names):
        make_image(60, 50, index).save(root / "JPEGImages" / f"{name}.jpg")
        objects = "".join(
            f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox><xmin>5</xmin><ymin>6</ymin>"
            f"<xmax>{25 + index}</xmax><ymax>30</ymax></bndbox></object>"
            for kind, hard in (("dog", 0), ("tvmonitor", index))
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        mask = np.zeros((50, 60), dtype=np.uint8)
        mask[6:30, 5:25] = 12
        mask[:3] = 255
        image = Image.fromarray(mask)
        image.putpalette([c % 256 for c in range(768)])
        image.save(root / "SegmentationClass" / f"{name}.png")
    for kind, split in (("Main", "test"), ("Segmentation", "val")):
        (root / "ImageSets" / kind / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
