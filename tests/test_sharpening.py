"""Output sharpening: unsharp masking in proportion to the machine preference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_models import CONFIGS, small_model

import ugicm
from ugicm.checkpoints.native import load_model, read_metadata
from ugicm.errors import ConfigError
from ugicm.evaluation.digests import model_digest
from ugicm.models import sharpening
from ugicm.models.sharpening import sharpen


def images(count=2):
    return torch.rand(count, 3, 40, 24, generator=torch.Generator().manual_seed(0))


def unsharp_mask(x, amount):
    return x + amount * (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1))


@pytest.mark.parametrize("band", [24, 24 * 7, 10**6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sharpen_matches_unsharp_masking(monkeypatch, band, layout):
    monkeypatch.setattr(sharpening, "BAND", band)
    x = images().contiguous(memory_format=layout)
    for amount in (torch.tensor([0.3, 0.7])[:, None, None, None], images()[:, :1]):
        wanted = unsharp_mask(x, amount)
        with torch.no_grad():
            torch.testing.assert_close(sharpen(x.clone(memory_format=layout), amount), wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(sharpen(x, amount), wanted, rtol=0, atol=1e-6)  # with gradients
    assert torch.equal(sharpen(x, torch.zeros(1, 1, 1, 1)), x)


def test_sharpen_gradients():
    x = images(1).double()[:, :, :6, :5].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sharpen(x, torch.full((1, 1, 1, 1), 0.5, dtype=x.dtype)), x)


@torch.no_grad()
def test_sharpening_scales_with_preference_and_falls_with_quality():
    model = small_model()
    y_hat = torch.randn(1, model.config.M, 6, 4, generator=torch.Generator().manual_seed(1))

    def change(beta, quality):
        both = []
        for sharpness in (0.0, 0.5):
            model.config = dataclasses.replace(model.config, sharpness=sharpness)
            both.append(model.synthesize(y_hat, torch.full((1,), beta), torch.full((1,), quality)))
        return both

    assert torch.equal(*change(0.0, 0.3))
    torch.testing.assert_close(*change(1.0, 1.0), rtol=0, atol=1e-6)
    for beta, quality in ((1.0, 0.0), (1.0, 0.6), (0.5, 0.0)):
        soft, sharp = change(beta, quality)
        torch.testing.assert_close(sharp, unsharp_mask(soft, 0.5 * beta * (1 - quality)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sharpness", [-0.1, 5.0, float("nan")])
def test_sharpness_rejects_values_out_of_range(sharpness):
    with pytest.raises(ConfigError, match="sharpness: (must be at|expected a number)"):
        dataclasses.replace(CONFIGS["compact"], sharpness=sharpness)


def test_convert_script_sets_sharpness(run_script, checkpoint, make_image, tmp_path):
    end = run_script("scripts/convert_checkpoint.py", checkpoint, tmp_path / "a.safetensors", "--sharpness", "2")
    assert end.returncode == 0, end.stderr
    assert load_model(tmp_path / "a.safetensors").config.sharpness == 2
    before, after = ugicm.load(checkpoint), ugicm.load(tmp_path / "a.safetensors")
    image: Image.Image = make_image()
    data = before.compress(image, 0.2)
    assert data == after.compress(image, 0.2)
    assert model_digest(before) != model_digest(after)  # or caches would mix their images
    assert before.fingerprint == after.fingerprint == read_metadata(tmp_path / "a.safetensors")["fingerprint"]
    (human, machine), (same, sharper) = (codec.decompress(data, [0.0, 1.0]) for codec in (before, after))
    assert human.tobytes() == same.tobytes() and machine.tobytes() != sharper.tobytes()


def test_convert_script_rejects_invalid_sharpness(run_script, checkpoint, tmp_path):
    end = run_script("scripts/convert_checkpoint.py", checkpoint, tmp_path / "a.safetensors", "--sharpness", "9")
    assert end.returncode == 2 and "sharpness: must be at most 4, got 9.0" in end.stderr
    assert not (tmp_path / "a.safetensors").exists()
