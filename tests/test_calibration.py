"""CDF calibration with symbol counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_models import encode, small_model

import ugicm
from ugicm.checkpoints.native import load_model, read_metadata
from ugicm.training.calibration import count_symbols

SCRIPT = "scripts/convert_checkpoint.py"


def images(count=2):
    low = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return (255 * torch.nn.functional.interpolate(low, size=128, mode="bicubic").clamp(0, 1)).byte()


@pytest.fixture
def model():
    model = small_model()
    model.entropy_model.build_tables()
    return model


def streams(model, quality=0.5):
    ready = copy.deepcopy(model).prepare_for_coding()
    with torch.no_grad():
        strings, _ = encode(ready, images().float() / 255, torch.full((2,), quality))
        y_hat, _ = ready.entropy_decode(strings, (128, 128))
    return sum(map(len, strings)), y_hat


def test_count_symbols_counts_every_coded_symbol(model):
    before = copy.deepcopy(model.state_dict())
    counts = count_symbols(model, images(3), batch=2)
    assert 0 < counts.sum() <= 5 * 3 * model.config.M * 64  # qualities, images, channels, positions
    table = model.entropy_model.gaussian
    assert counts[0].nonzero().tolist() == [[-table.offset[0]]]  # positions of the smallest scale are not coded, but 0
    for row in np.flatnonzero(counts.sum(1).numpy() > 500):  # centered, relative to the row's scale
        symbols = torch.arange(counts.shape[1] - 1) + table.offset[row]
        mean = (counts[row, :-1] * symbols).sum() / counts[row, :-1].sum()
        assert mean.abs() < 0.2 * table.scale_table[row] + 0.1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_calibrate_converts_counts_to_probabilities(model):
    table = model.entropy_model.gaussian
    row, width = 30, table.quantized_cdf.shape[1] - 1
    length, zero = int(table.cdf_length[row]) - 2, -int(table.offset[row])
    before = table.quantized_cdf.clone()
    counts = torch.zeros(len(before), width, dtype=torch.float64)
    counts[row, zero], counts[row, zero + 1], counts[row, length] = 60e6, 20e6, 20e6  # 0, 1 and escapes
    table.calibrate(counts)
    probabilities = table.quantized_cdf[row, : length + 2].diff() / 65536
    for symbol, wanted in ((zero, 0.6), (zero + 1, 0.1), (zero - 1, 0.1), (length, 0.2)):
        assert probabilities[symbol] == pytest.approx(wanted, abs=2e-3)
    assert probabilities.min() > 0 and probabilities.sum() == 1
    others = torch.arange(len(before)) != row
    assert (table.quantized_cdf[others] - before[others]).abs().max() <= 3  # nothing seen: still the Gaussian


def test_calibration_shortens_bitstreams_without_changing_images(model):
    long, y_hat = streams(model)
    fingerprint = copy.deepcopy(model).prepare_for_coding().fingerprint
    model.entropy_model.gaussian.calibrate(count_symbols(model, images()))
    short, same = streams(model)
    assert short < 0.99 * long
    assert torch.equal(y_hat, same)
    assert copy.deepcopy(model).prepare_for_coding().fingerprint != fingerprint


def test_convert_script_calibrates(run_script, checkpoint, photos, tmp_path, make_image):
    plain, calibrated = tmp_path / "plain.safetensors", tmp_path / "calibrated.safetensors"
    for target, options in ((plain, ()), (calibrated, ("--calibrate", photos / "dogs", photos / "cats"))):
        end = run_script(SCRIPT, checkpoint, target, "--half", *options)
        assert end.returncode == 0, end.stderr
    assert "dogs" in read_metadata(calibrated)["calibrated"] and "calibrated" not in read_metadata(plain)
    for (name, a), b in zip(load_model(plain).state_dict().items(), load_model(calibrated).state_dict().values()):
        assert torch.equal(a, b) != name.endswith("gaussian._quantized_cdf"), name
    before, after = ugicm.load(plain), ugicm.load(calibrated)
    assert after.fingerprint == read_metadata(calibrated)["fingerprint"]
    data, long = (codec.compress(make_image(256, 192, 1)) for codec in (after, before))
    assert after.decompress(data).tobytes() == before.decompress(long).tobytes()
    assert len(data) < len(long)
    with pytest.raises(ugicm.StreamError, match="another model"):
        before.decompress(data)


def test_convert_script_rejects_a_folder_without_images(run_script, checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    end = run_script(SCRIPT, checkpoint, tmp_path / "out.safetensors", "--calibrate", tmp_path / "empty")
    assert end.returncode == 2 and "empty" in end.stderr and "Traceback" not in end.stderr
    assert not (tmp_path / "out.safetensors").exists()
