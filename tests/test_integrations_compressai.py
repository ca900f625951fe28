"""CompressAI runs a checkpoint as one of its own models, with the results of this package's codec."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from reference import reference_state

import ugicm
from ugicm import bitstream
from ugicm.errors import CheckpointError
from ugicm.evaluation.metrics import psnr
from ugicm.images import from_tensor, to_tensor

compressai = pytest.importorskip("compressai")
from ugicm.integrations import compressai as integration  # noqa: E402

SAMPLE = ROOT / "ugicm" / "samples" / "kodim15.png"


@pytest.fixture
def batch(make_image):
    return torch.cat([to_tensor(make_image(128, 64, seed)) for seed in range(2)])


@pytest.fixture(scope="module")
def net(checkpoint):
    return integration.UgicmModel(checkpoint, quality=0.3, preference="machine")


def bits(out: dict) -> float:
    """Return the bits that likelihoods of ``forward`` estimate."""
    return -sum(likelihoods.log2().sum().item() for likelihoods in out["likelihoods"].values())


def test_strings_are_those_of_the_codec(net, checkpoint, batch):
    codec = ugicm.load(checkpoint, fast=False)
    out = net.compress(batch)
    assert tuple(out["shape"]) == (1, 2)
    images = net.decompress(**out)["x_hat"]
    assert images.shape == batch.shape and 0 <= images.min() and images.max() <= 1
    for i, string in enumerate(out["strings"][0]):
        data = codec.compress(from_tensor(batch[i : i + 1]), 0.3)
        assert bitstream.parse(data).strings == (string,)
        difference = np.array(from_tensor(images[i : i + 1]), int) - np.array(codec.decompress(data, "machine"), int)
        assert abs(difference).max() <= 1  # convolutions of a batch add in another order


def test_likelihoods_estimate_the_strings():
    net = integration.UgicmModel(quality=0.4, preference=1)
    with Image.open(SAMPLE) as photograph:
        x = torch.cat([to_tensor(photograph.crop((x, 100, x + 256, 228))) for x in (200, 456)])
    out, written = net(x), net.compress(x)
    written_bits = 8 * sum(map(len, written["strings"][0]))
    assert 0.96 < written_bits / bits(out) < 1.01  # likelihoods are Gaussian; calibrated tables take fewer bits
    assert torch.allclose(out["x_hat"].clamp(0, 1), net.decompress(**written)["x_hat"], atol=1e-4)
    assert net.train()(x)["x_hat"].equal(out["x_hat"])  # the copy that computes does not train


def test_sides_that_are_no_multiples_of_64(net, make_image):
    x = to_tensor(make_image(50, 70))
    assert net(x)["x_hat"].shape == x.shape
    padded = net.decompress(**net.compress(x))["x_hat"]
    assert padded.shape == (1, 3, 128, 64)
    assert torch.allclose(padded[..., :70, :50], net(x)["x_hat"].clamp(0, 1), atol=1e-4)


def test_state_dict_round_trip(net, other_checkpoint, batch, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pth.tar")
    state = torch.load(tmp_path / "net.pth.tar", weights_only=True)
    again = integration.UgicmModel.from_state_dict(state)
    assert (again.quality, again.preference) == (net.quality, net.preference)
    expected = net.compress(batch)
    assert again.compress(batch) == expected
    other = integration.UgicmModel(other_checkpoint, quality=0.3)
    assert other.compress(batch) != expected
    other.load_state_dict(state)
    assert other.compress(batch) == expected
    assert not other.update() and other.update(force=True)
    with pytest.raises(CheckpointError, match="state dict: missing tensors"):
        integration.UgicmModel.from_state_dict({"_extra_state": state["_extra_state"]} | dict(list(state.items())[:9]))
    with pytest.raises(CheckpointError, match="state dict: not a UG-ICM or MLIC"):
        integration.UgicmModel.from_state_dict({})


def test_state_dict_of_a_released_checkpoint(batch):
    net = integration.UgicmModel.from_state_dict(reference_state())
    out = net.compress(batch)
    assert torch.allclose(net.decompress(**out)["x_hat"], net(batch)["x_hat"].clamp(0, 1), atol=1e-4)


def test_half_precision_leaves_the_copy_that_codes(checkpoint, batch):
    net = integration.UgicmModel(checkpoint)
    expected = net.compress(batch)
    assert net.half().compress(batch) == expected


def test_zoo():
    zoo = compressai.zoo
    assert zoo.image_models["ugicm"] is zoo.models["ugicm"] is integration.zoo_model
    assert compressai.registry.MODELS["ugicm"] is zoo.image.model_architectures["ugicm"] is integration.UgicmModel
    low, high = (zoo.image_models["ugicm"](level, pretrained=True) for level in (1, 8))
    assert (low.quality, high.quality, low.preference) == (0, 1, 0)
    assert low.model.state_dict().keys() == zoo.models["ugicm"](1, preference="machine").model.state_dict().keys()
    for arguments in ({"quality": 0}, {"quality": 9}, {"quality": 1, "metric": "ms-ssim"}):
        with pytest.raises(ValueError, match="available: 'mse' at qualities 1 to 8"):
            integration.zoo_model(**arguments)
    with pytest.raises(ValueError, match="quality is 1.5"):
        integration.UgicmModel(quality=1.5)


def test_pretrained_model_in_eval_model_of_compressai(run_python, make_image, tmp_path):
    """Sides are multiples of 64: CompressAI pads others with black on all sides, this package to the right and below.

    CompressAI counts bytes of strings, this package those of files.
    """
    with Image.open(SAMPLE) as photograph:
        images = [photograph.crop((200, 100, 456, 292)), make_image(192, 192)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    arguments = ["pretrained", tmp_path, "-a", "ugicm", "-q", "1,8", "-d", tmp_path / "out"]
    run = run_python("-m", "ugicm.integrations.compressai", *arguments)
    assert run.returncode == 0, run.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    results = json.loads(path.read_text())
    assert results["name"] == "ugicm-mse"
    codec = ugicm.load(fast=False)
    for i, quality in enumerate((0, 1)):
        files = [codec.compress(image, quality) for image in images]
        lengths = [bitstream.parse(data).payload_bytes for data in files]
        rates = [8 * length / math.prod(image.size) for length, image in zip(lengths, images)]
        psnrs = [psnr(image, codec.decompress(data)) for image, data in zip(images, files)]
        assert results["results"]["bpp"][i] == pytest.approx(np.mean(rates), rel=1e-9)
        assert results["results"]["psnr-rgb"][i] == pytest.approx(np.mean(psnrs), abs=0.01)


def test_saved_model_in_eval_model_of_compressai(net, run_python, make_image, tmp_path):
    image = make_image(200, 170)
    image.save(tmp_path / "odd.png")
    path = tmp_path / "net.pth.tar"
    torch.save({"state_dict": net.state_dict()}, path)
    command = ["-m", "ugicm.integrations.compressai", "checkpoint", tmp_path, "-a", "ugicm", "-p", path]
    run = run_python(*command, "--entropy-estimation")
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)["results"]
    with torch.no_grad():
        out = net(to_tensor(image))
    assert results["bpp"] == [pytest.approx(bits(out) / (200 * 170), rel=1e-3)]
    assert results["psnr-rgb"] == [pytest.approx(psnr(image, from_tensor(out["x_hat"])), abs=0.01)]


def test_error_without_compressai_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "compressai", None)
    monkeypatch.delitem(sys.modules, "ugicm.integrations.compressai")
    with pytest.raises(ImportError, match=r"pip install .*\[compressai\]. \(Python 3.11 or 3.12\)"):
        import ugicm.integrations.compressai  # noqa: F401
