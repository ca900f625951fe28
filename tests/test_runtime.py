"""The codec without PyTorch agrees with ``ugicm.load``: symbols, images, bitstreams and errors."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import golden_files as golden
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from PIL import Image

import ugicm
from scripts.stress.mutants import mutants, valid_bitstreams
from ugicm import bitstream, runtime
from ugicm.tiling import Y_STRIDE, Z_STRIDE

pytest.importorskip("onnxruntime", reason="needs the extra runtime")


@pytest.fixture(scope="module")
def reference(checkpoint):
    return ugicm.load(checkpoint, fast=False)


@pytest.fixture(scope="module")
def codec(exported):
    return runtime.load(exported)


def levels_apart(a, b) -> int:
    return int(np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16)).max())


@pytest.mark.parametrize("size, tile", [((64, 64), 0), ((100, 70), 0), ((1, 1), 0), ((200, 130), 64)])
def test_images_are_equal_within_a_level(codec, reference, make_image, size, tile):
    data = reference.compress(make_image(*size), 0.8, tile=tile)
    preferences = ["human", 0.4, "machine"]
    decoded, wanted = codec.decompress(data, preferences), reference.decompress(data, preferences)
    for a, b in zip(decoded, wanted, strict=True):
        assert a.shape == (*size[::-1], 3) and a.dtype == np.uint8 and levels_apart(a, b) <= 1
    assert np.array_equal(codec.decompress(data, 0.4), decoded[1])


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_compress_writes_what_the_reference_writes(codec, reference, make_image, monkeypatch, quality):
    """From the same latents: those of the two analysis transforms may differ where they are rounded."""
    monkeypatch.setattr(runtime, "TILED_FROM", 2**15)
    monkeypatch.setattr(runtime, "TILE", 128)
    for size in ((100, 70), (300, 140)):
        pixels = np.asarray(make_image(*size))
        parsed = bitstream.parse(codec.compress(pixels, quality))
        y = torch.from_numpy(codec.analyze(pixels, parsed.quality))
        z = reference.model.hyper_analyze(y)
        for box, string, digest in zip(parsed.tiles, parsed.strings, parsed.digests, strict=True):
            latents = y[..., *box.slices(Y_STRIDE)], z[..., *box.slices(Z_STRIDE)]
            assert reference.model.entropy_encode(*latents, parsed.extent(box)) == ([string], [digest])
    assert parsed.tile == 128


def test_windows_change_nothing(codec, make_image, monkeypatch):
    pixels = np.asarray(make_image(330, 200))
    data = codec.compress(pixels)
    image = codec.decompress(data, 0.5)
    monkeypatch.setattr(runtime, "WINDOW", 128)
    assert codec.compress(pixels) == data
    assert levels_apart(codec.decompress(data, 0.5), image) <= 1


def test_mutants_end_in_the_same_errors(codec, reference, monkeypatch):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 2**16)
    outcomes = set()

    def outcome(decoder, data) -> str:
        try:
            decoded = decoder.decompress(data)
            return str(np.asarray(decoded if decoder is codec else decoded.convert("RGB")).shape)
        except ugicm.StreamError as error:
            return str(error).partition(";")[0]  # what to do differs

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutants(valid_bitstreams(reference)))
    def run(mutant):
        found, wanted = outcome(codec, mutant.data), outcome(reference, mutant.data)
        assume("alpha" not in wanted and "stores" not in found)  # what needs Pillow
        assert found == wanted
        outcomes.add(found.partition(":")[0])

    run()
    assert {"corrupt bitstream", "truncated bitstream"} <= outcomes


def test_invalid_arguments(codec, make_image):
    data = codec.compress(np.asarray(make_image()))
    for preference in ("nobody", -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="preference"):
            codec.decompress(data, preference)
    for image in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ugicm.ImageError, match=re.escape("an image is uint8 [H, W, 3]")):
            codec.compress(image)
    with pytest.raises(ValueError, match="quality is 2"):
        codec.compress(np.zeros((4, 4, 3), np.uint8), 2)


def test_folders_without_a_model_are_refused(exported, tmp_path):
    with pytest.raises(ugicm.CheckpointError, match="model.json: cannot be read"):
        runtime.load(tmp_path)
    for name in ("model.json", "tables.json"):
        shutil.copy(exported / name, tmp_path)
    with pytest.raises(ugicm.CheckpointError, match="analysis.onnx: no such file"):
        runtime.load(tmp_path).compress(np.zeros((4, 4, 3), np.uint8))
    document = json.loads((exported / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**document, "bitstream_version": 3}))
    with pytest.raises(ugicm.CheckpointError, match="no model of bitstream version"):
        runtime.load(tmp_path)


def test_needs_neither_pytorch_nor_pillow(run_python, exported, codec, make_image, tmp_path):
    pixels = np.asarray(make_image())
    np.save(tmp_path / "image.npy", pixels)
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "PIL", "safetensors", "tqdm"]))
import numpy as np
from ugicm import runtime
codec = runtime.load({str(exported)!r})
data = codec.compress(np.load("image.npy"))
assert codec.decompress(data, "machine").shape == (30, 40, 3)
open("image.ugic", "wb").write(data)
"""
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "image.ugic").read_bytes() == codec.compress(pixels)


@pytest.mark.slow
def test_golden_files(exported_shipped):
    codec = runtime.load(exported_shipped)
    expected = json.loads((golden.GOLDEN / "expected.json").read_text())["symbols"]
    for name in golden.INPUTS:
        for quality in golden.QUALITIES:
            data = golden.bitstream_path(name, quality).read_bytes()
            parsed, digest = bitstream.parse(data), hashlib.sha256()
            for tile, string, check in zip(parsed.tiles, parsed.strings, parsed.digests):
                _, residuals = codec.decode_symbols(string, check, tile, parsed.extent(tile))
                for part in codec.split(residuals):
                    digest.update(part.astype("<i4").tobytes())
            assert digest.hexdigest() == expected[f"{name}_{quality:g}"]
            for preference, image in zip(golden.PREFERENCES, codec.decompress(data, list(golden.PREFERENCES))):
                wanted = Image.open(golden.image_path(name, quality, preference)).convert("RGB")
                assert levels_apart(image, wanted) <= 1
