"""Fidelity: PSNR, MS-SSIM and LPIPS."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from task_helpers import save

from ugicm.errors import ConfigError
from ugicm.evaluation.tasks import fidelity
from ugicm.evaluation.tasks.base import Item


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
