"""docs/bitstream.md suffices to decode files: a decoder written from the page agrees with the package."""

import json
from pathlib import Path

import golden_files as golden
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from plain_decoder import PlainModel, read_file

import ugicm
from ugicm import bitstream
from ugicm.codec import SHIPPED


@pytest.fixture(scope="module")
def codec():
    return ugicm.load()


@pytest.fixture(scope="module")
def plain_model():
    path = Path(ugicm.__file__).parent / "weights" / SHIPPED
    with safetensors.safe_open(path, "np") as file:
        return PlainModel(safetensors.numpy.load_file(path), json.loads(file.metadata()["config"]))


@pytest.mark.parametrize("name", golden.INPUTS)
def test_header(name):
    data = golden.bitstream_path(name, 0.5).read_bytes()
    plain, parsed = read_file(data), bitstream.parse(data)
    for field in ("fingerprint", "width", "height", "quality", "digests", "strings"):
        wanted = getattr(parsed, field)
        assert getattr(plain, field) == (list(wanted) if isinstance(wanted, tuple) else wanted)
    assert plain.side == parsed.tile


CASES = [("odd", 0.0), ("odd", 1.0), ("photograph", 0.5), ("tiled", 0.5), ("noise", 0.5)]


@pytest.mark.parametrize("name, quality", CASES)
def test_latents(codec, plain_model, name, quality):
    data = golden.bitstream_path(name, quality).read_bytes()
    y_hat = codec.entropy_decode(bitstream.parse(data))[0].numpy()
    for (top, left, bottom, right), h, residuals in plain_model.decode(data):
        tile = y_hat[:, top // 16 : bottom // 16, left // 16 : right // 16]
        np.testing.assert_allclose(plain_model.y_hat(h, residuals), tile, atol=1e-3)
