"""Fidelity: PSNR, MS-SSIM and LPIPS."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from task_helpers import SQUEEZENET, save

from ugicm.checkpoints.state_dict import read_state_dict
from ugicm.errors import ConfigError
from ugicm.evaluation.metrics import psnr
from ugicm.evaluation.tasks import base, fidelity
from ugicm.evaluation.tasks.base import Item
from ugicm.evaluation.tasks.classifiers import NORMALIZATIONS

NEEDS_SQUEEZENET = pytest.mark.skipif(not SQUEEZENET.is_file(), reason=f"needs {SQUEEZENET}")


def test_fidelity_by_hand(make_image):
    original = Image.new("RGB", (200, 200), (100, 100, 100))
    shifted = Image.new("RGB", (200, 200), (110, 100, 100))
    record = fidelity.FidelityEvaluator.prepare(None, shifted, original)
    assert record["psnr-rgb"] == pytest.approx(10 * math.log10(255**2 / (100 / 3)))
    assert record["psnr-y"] == pytest.approx(10 * math.log10(255**2 / 2.99**2))
    assert fidelity.FidelityEvaluator.prepare(None, original, original)["psnr-rgb"] == 100
    assert (
        fidelity.FidelityEvaluator.prepare(None, shifted.resize((90, 90)), original.resize((90, 90)))["ms-ssim-rgb"]
        is None
    )


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_matches_package(net, make_image):
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


def test_mean_psnr_of_exact_images():
    """An image that becomes exact at a higher rate raises the mean, and stays in it."""
    evaluator = fidelity.FidelityEvaluator()
    original = Image.effect_noise((64, 64), 50).convert("RGB")
    near = original.copy()
    near.putpixel((0, 0), (near.getpixel((0, 0))[0] ^ 1, *near.getpixel((0, 0))[1:]))
    coarse = original.point(lambda value: value // 8 * 8)
    records = {name: evaluator.prepare(None, image, original) for name, image in
               (("coarse", coarse), ("near", near), ("exact", original))}  # fmt: skip
    scores = [evaluator.summarize({"a": records["coarse"], "b": records[name]}) for name in ("coarse", "near", "exact")]
    for metric in ("psnr-rgb", "psnr-y"):
        values = [score[metric] for score in scores]
        assert values == sorted(values) and values[2] == (records["coarse"][metric] + 100) / 2
    assert psnr(original, original) == 100 and 80 < psnr(original, near) < 100


def test_lpips_of_a_small_image(make_image):
    """It has no score; the others keep theirs."""
    import torchvision

    evaluator = fidelity.load_lpips(f"alex={save(torchvision.models.alexnet())}")
    images = {"a": make_image(64, 70, 1), "b": make_image(24, 90, 2)}
    inputs = [evaluator.prepare(None, image, make_image(*image.size, 3)) for image in images.values()]
    assert base.process(evaluator, [Item(key, Path(key)) for key in images], inputs) == {}
    assert evaluator.records["b"] == {"lpips": None}
    assert evaluator.evaluate() == {"lpips": evaluator.records["a"]["lpips"]}
    assert evaluator.per_image_scores("lpips", evaluator.records).keys() == {"a"}
    with torch.no_grad():
        next(evaluator.model.parameters()).fill_(math.nan)
    failed = base.process(evaluator, [Item(key, Path(key)) for key in images], inputs)
    assert failed == {"a": "lpips-alex: the value is not finite"}


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=NEEDS_SQUEEZENET)])
def test_lpips_of_weights_for_images_as_they_are(real, make_image, tmp_path):
    """Equal to the network of the package, whose first layer undoes the normalization."""
    import lpips
    import torchvision

    torch.manual_seed(0)
    path = SQUEEZENET if real else save(torchvision.models.squeezenet1_1())
    evaluator = fidelity.load_lpips(f"squeeze={path}:normalize=none")
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    state = {k.partition(".")[2]: v for k, v in read_state_dict(path).items() if k.startswith("features.")}
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS["imagenet"])
    state["0.bias"] = state["0.bias"] + (state["0.weight"] * mean).sum((1, 2, 3))
    state["0.weight"] = state["0.weight"] * deviation
    reference.net.load_state_dict({key: state[key.partition(".")[2]] for key in reference.net.state_dict()})
    image, values = make_image(96, 80, 1), []
    for quality in (5, 30, 90):
        image.save(tmp_path / "x.jpg", quality=quality)
        decoded, original = evaluator.prepare(None, Image.open(tmp_path / "x.jpg"), image)
        evaluator.process([Item("x", Path("x"))], [(decoded, original)])
        values.append(evaluator.records["x"]["lpips"])
        with torch.no_grad():
            assert values[-1] == pytest.approx(float(reference(decoded, original, normalize=True)), rel=1e-4)
    assert values == sorted(values, reverse=True) and values[-1] > 0
    other = fidelity.load_lpips(f"squeeze={path}")
    assert other.identity != evaluator.identity
    for text, message in ((f"squeeze={path}:normalize=half", "unknown normalize; available: none, imagenet"),
                          ("squeeze:normalize=none", "unknown option 'normalize'")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            fidelity.load_lpips(text)
