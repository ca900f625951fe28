"""Bitstreams that were written once decode to the same symbols and images; new ones keep their size and PSNR."""

from __future__ import annotations

import json

import golden_files as golden
import numpy as np
import pytest
from PIL import Image

import ugicm
from ugicm import bitstream

CASES = [(name, quality) for name in golden.INPUTS for quality in golden.QUALITIES]
EXTENDED = [(name, golden.EXTENDED_QUALITY) for name in golden.EXTENDED]


@pytest.fixture(scope="module")
def codec(request):
    codec = ugicm.load(fast=False)
    if request.config.getoption("--regenerate-golden"):
        golden.regenerate(codec)
    return codec


@pytest.fixture(scope="module")
def expected(codec):
    return json.loads((golden.GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("name, quality", CASES)
def test_symbols(codec, expected, name, quality):
    data = golden.bitstream_path(name, quality).read_bytes()
    assert golden.symbol_digest(codec, data) == expected["symbols"][f"{name}_{quality:g}"], golden.REGENERATE


@pytest.mark.parametrize("name, quality", CASES + EXTENDED)
def test_images(codec, name, quality):
    data = golden.bitstream_path(name, quality).read_bytes()
    source = golden.extended_source(name).rgb if name in golden.EXTENDED else golden.input_image(name)
    for preference, decoded in zip(golden.PREFERENCES, codec.decompress(data, list(golden.PREFERENCES))):
        wanted = Image.open(golden.image_path(name, quality, preference)).convert(decoded.mode)
        assert decoded.size == wanted.size == source.size
        difference = np.abs(np.asarray(decoded, dtype=np.int16) - np.asarray(wanted, dtype=np.int16))
        assert difference.max() <= 1, f"{preference}: {difference.max()} levels apart; {golden.REGENERATE}"


@pytest.mark.parametrize("name, quality", EXTENDED)
def test_extended_fields(codec, name, quality):
    data = golden.bitstream_path(name, quality).read_bytes()
    parsed, source = bitstream.parse(data), golden.extended_source(name)
    assert parsed.version == 5
    assert (parsed.gray, parsed.stored) == (name == "gray", name == "stored")
    assert set(parsed.boxes) == ({"alpha", "exif", "xmp"} if name == "transparent" else set())
    image = codec.decompress(data)
    assert image.mode == {"gray": "L", "transparent": "RGBA", "stored": "RGB"}[name]
    if name == "stored":
        assert image.tobytes() == source.rgb.tobytes()
    if name == "transparent":
        assert image.getchannel("A").tobytes() == source.alpha.tobytes()
        assert image.info["exif"].endswith(golden.EXIF) and image.info["xmp"] == golden.XMP


@pytest.mark.parametrize("quality", golden.QUALITIES)
@pytest.mark.parametrize("path", golden.SAMPLES, ids=lambda path: path.stem)
def test_samples(codec, expected, path, quality):
    """Size to 0.2 %, since a processor that rounds differently changes a few symbols; PSNR to 0.02 dB."""
    wanted = expected["samples"][f"{path.stem}_{quality:g}"]
    found = golden.measure_sample(codec, path, quality)
    assert found["bytes"] == pytest.approx(wanted["bytes"], rel=2e-3), golden.REGENERATE
    for preference in golden.PREFERENCES:
        assert found[preference] == pytest.approx(wanted[preference], abs=0.02), golden.REGENERATE


def test_every_golden_file_is_used():
    found = {path for folder in ("bitstreams", "images") for path in (golden.GOLDEN / folder).iterdir()}
    named = {golden.bitstream_path(*case) for case in CASES + EXTENDED}
    named |= {golden.image_path(*case, preference) for case in CASES + EXTENDED for preference in golden.PREFERENCES}
    assert found == named
