"""Semantic segmentation: mIoU by hand and against torchmetrics, invalid masks, and the script."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from task_helpers import make_voc, save, script
from torch import nn

from ugicm.errors import ConfigError, ImageError
from ugicm.evaluation.tasks import base, classifiers, semantic_segmentation
from ugicm.evaluation.tasks.sources import Originals


@pytest.fixture
def voc(tmp_path, make_image) -> Path:
    return make_voc(tmp_path, make_image)


def test_iou_by_hand_and_torchmetrics(tmp_path):
    classification_metrics = pytest.importorskip("torchmetrics.classification")
    generator = np.random.default_rng(0)
    preset = classifiers.Preprocess(0, 0)
    segmenter = semantic_segmentation.Segmenter("s", nn.Identity(), preset, 5, "cpu", "s")
    evaluator = semantic_segmentation.SegmentationEvaluator(segmenter)
    truth, predictions = generator.integers(0, 5, (4, 30, 40)), generator.integers(0, 5, (4, 30, 40))
    truth[:, :4] = semantic_segmentation.IGNORE
    evaluator.records = {
        str(i): {"pairs": semantic_segmentation.confusion(truth[i], predictions[i], 5)} for i in range(len(truth))
    }
    metric = classification_metrics.MulticlassJaccardIndex(5, ignore_index=semantic_segmentation.IGNORE)
    expected = float(metric(torch.tensor(predictions), torch.tensor(truth)))
    assert evaluator.evaluate()["mIoU"] == pytest.approx(100 * expected, rel=1e-5)
    small = np.array([[0, 0, 1], [1, 1, semantic_segmentation.IGNORE]]), np.array([[0, 1, 1], [1, 0, 2]])
    evaluator.records = {"x": {"pairs": semantic_segmentation.confusion(*small, 5)}}
    scores = evaluator.evaluate()
    # Class 0: 1 of {2 true + 2 predicted - 1}; class 1: 2 of {3 + 3 - 2}; the others do not occur.
    assert (scores["IoU 0"], scores["IoU 1"], scores["IoU 2"]) == (pytest.approx(100 / 3), 50, None)
    assert scores["mIoU"] == pytest.approx((100 / 3 + 50) / 2) and scores["pixel accuracy"] == 60


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.full((8, 8), -7, np.int32), "the mask has class -7, but the network has classes 0 to 4"),
        (np.full((8, 8), 2.7, np.float32), "one class index per pixel .* not 2 axes of float32"),
        (np.zeros((8, 8, 3), np.uint8), "one class index per pixel .* not 3 axes"),
        (np.zeros((40, 40), np.uint8), "decompression bomb"),
    ],
    ids=["negative", "float", "color", "too large"],
)
def test_read_mask_invalid(tmp_path, monkeypatch, pixels, message):
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageError, match=f"mask.tif: .*{message}"):
        semantic_segmentation.read_mask(tmp_path / "mask.tif", 5)


def test_semantic_script_voc(voc, tmp_path, capsys):
    import torchvision

    torch.manual_seed(0)
    build = torchvision.models.get_model
    model = build("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=21)
    spec = f"lraspp_mobilenet_v3_large={save(model)}:resize=64"
    main = script("scripts/eval_semantic")
    arguments = ["--voc", str(voc), "--segmenters", spec, "--device", "cpu"]
    assert main([*arguments, "--codec", "jpeg", "--quality", "50", "-o", str(tmp_path / "s.json")]) == 0
    assert re.match(r"semantic segmentation: 2 images \(.*, setting 50.*\)\n", capsys.readouterr().out)
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["results"]["bpp"][0] > 0 and "mIoU (lraspp_mobilenet_v3_large)" in document["results"]
    pixels = sum(p[2] for row in document["per_image"] for p in row["lraspp_mobilenet_v3_large"]["pairs"])
    assert pixels == 2 * 47 * 60  # all but the ignored rows
    masks = ["-d", str(voc / "JPEGImages"), "--masks", str(voc / "SegmentationClass")]
    assert main([*masks, *arguments[2:]]) == 0
    Image.fromarray(np.full((50, 60), 30, np.uint8)).save(voc / "SegmentationClass" / "000002.png")
    assert main(arguments) == 1  # an undefined class: the image is reported, the other one scored
    (voc / "SegmentationClass" / "000002.png").unlink()
    with pytest.raises(ConfigError, match="no mask for 1 of 2 images: 000002.jpg"):
        main([*masks, *arguments[2:]])


@pytest.mark.parametrize(
    "values, message",
    [([0, 255], "has only 255, which is not scored, and 0"), ([255], "has only 255"), ([0, 128], "has class 128")],
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_objects_are_no_classes(values, message, mode, tmp_path):
    """A mask of 0 and 255 would leave out every pixel of the object."""
    pixels = np.resize(np.array(values, np.uint8), (12, 12))
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=f"mask.png: the mask {message}"):
        semantic_segmentation.read_mask(tmp_path / "mask.png", 5)


def test_masks_with_classes_beside_255_or_only_background(tmp_path):
    for name, values in (("a", [0, 0, 4, 255]), ("b", [0, 0, 0, 0]), ("c", [3, 3, 255, 255])):
        pixels = np.resize(np.array(values, np.uint8), (12, 12))
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert np.array_equal(semantic_segmentation.read_mask(tmp_path / f"{name}.png", 5), pixels)
    two = np.resize([False, True], (12, 12))
    Image.fromarray(two).save(tmp_path / "two.png")  # mode 1: classes 0 and 1
    assert np.array_equal(semantic_segmentation.read_mask(tmp_path / "two.png", 5), two)


def test_masks_that_cannot_be_right(tmp_path):
    """JPEG changes the values; EXIF turns a mask or its image against the other."""
    mask = np.zeros((12, 12), np.uint8)
    mask[:4] = 1
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=100)
    with pytest.raises(ImageError, match="mask.jpg: JPEG changes the classes of a mask; use PNG"):
        semantic_segmentation.read_mask(tmp_path / "mask.jpg", 5)
    exif = Image.Exif()
    exif[0x112] = 3
    Image.fromarray(mask).save(tmp_path / "turned.png", exif=exif)
    with pytest.raises(ImageError, match="turned.png: EXIF turns the image"):
        semantic_segmentation.read_mask(tmp_path / "turned.png", 5)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (12, 12)).save(tmp_path / "image.jpg", exif=exif)
    segmenter = semantic_segmentation.Segmenter("s", nn.Identity(), classifiers.Preprocess(0, 0), 5, "cpu", "s")
    evaluator = semantic_segmentation.SegmentationEvaluator(segmenter)
    item = base.Item("image.jpg", tmp_path / "image.jpg", tmp_path / "mask.png")
    assert "image.jpg: EXIF turns the image" in base.run([evaluator], [item], Originals()).failed["image.jpg"]


def test_segmentation_outputs_not_finite(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return {"out": x / x.amax()}  # not a number for a black image

    for name, level in (("black", 0), ("gray", 90)):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{name}.png")
    Image.new("L", (8, 8), 1).save(tmp_path / "mask.png")
    preprocess = classifiers.Preprocess(0, 0, "bilinear", *classifiers.NORMALIZATIONS["none"])
    evaluator = semantic_segmentation.SegmentationEvaluator(
        semantic_segmentation.Segmenter("s", Odd(), preprocess, 3, "cpu", "s")
    )
    items = [base.Item(f"{name}.png", tmp_path / f"{name}.png", tmp_path / "mask.png") for name in ("black", "gray")]
    failed = base.run([evaluator], items, Originals()).failed
    assert failed == {"black.png": "s: the network's outputs are not finite"} and [*evaluator.records] == ["gray.png"]


def test_segmenter_takes_whole_images():
    with pytest.raises(ConfigError, match="crop=64 scores the whole mask with a part of the image"):
        semantic_segmentation.load_segmenter("lraspp_mobilenet_v3_large=w.pth:crop=64")


def test_images_of_one_mask(tmp_path):
    for name in ("images/a.jpg", "images/a.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    with pytest.raises(ConfigError, match="masks: a.jpg and a.png both match .*a.png"):
        semantic_segmentation.paired_items(tmp_path / "images", tmp_path / "masks")
