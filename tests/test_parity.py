"""Agreement with the reference network, given the same weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from reference import PARITY, SHARED, recipe, reference_state, requires_full_reference
from small_models import encode

from ugicm.checkpoints.released import infer_config, load_released, native_name, reference_name

TOLERANCE = 1e-5  # relative; the requirement is 1e-4
QUALITY = torch.ones(1)  # without effect on a one-rate model


@pytest.fixture(scope="module")
def expected():
    return np.load(PARITY / "expected_small.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "small.pth.tar"
    torch.save({"state_dict": reference_state()}, path)
    return load_released(path).prepare_for_coding()


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(recipe().test_image(128, 192))


def relative_error(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float(np.abs(found.double().numpy() - wanted).max() / np.abs(wanted).max())


@torch.inference_mode()
def test_latent(model, image, expected):
    assert relative_error(model.analyze(image, QUALITY), expected["y"]) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("beta", ["0", "0.5", "1"])
def test_image(model, image, expected, beta):
    x_hat = model(image, torch.tensor([float(beta)]), QUALITY)["x_hat"]
    assert relative_error(x_hat, expected[f"x_hat_beta{beta}"]) < TOLERANCE


@torch.inference_mode()
def test_bits(model, image, expected):
    likelihoods = model(image, torch.zeros(1), QUALITY)["likelihoods"]
    bits = {name: -value.double().log2().sum(dim=(0, 2, 3)) for name, value in likelihoods.items()}
    np.testing.assert_allclose(bits["y"], expected["bits_y_per_channel"], rtol=TOLERANCE)
    np.testing.assert_allclose(bits["z"].sum(), expected["bits_z"], rtol=TOLERANCE)


@torch.inference_mode()
def test_bitstream(model, image, expected):
    (string,), _ = encode(model, image, QUALITY)
    assert abs(len(string) - int(expected["bytes_y"]) - int(expected["bytes_z"])) <= 8
    y_hat, _ = model.entropy_decode([string], (128, 192))
    x_hat = model.synthesize(y_hat, torch.ones(1), QUALITY)
    assert relative_error(x_hat, expected["x_hat_decoded_beta1"]) < TOLERANCE


@requires_full_reference
def test_names_and_shapes_of_the_released_model():
    shapes = json.loads((SHARED / "state_dict_full.json").read_text())
    shapes.pop("gaussian_conditional.scale_table")  # its values matter
    state = {name: torch.empty(shape, device="meta") for name, (shape, _) in shapes.items()}
    config = infer_config(state)
    assert (config.N, config.M, config.slice_widths, config.lrp) == (192, 320, (32,) * 10, "full")
    assert (config.beta_width, config.beta_frequencies) == (512, 10)
    assert (config.parameter_widths, config.channel_widths) == ((320, 256, 128), (192, 128))
    for name in reference_state():
        assert reference_name(native_name(name)) == name
