"""Latent refinement."""

from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_model

import ugicm
from ugicm import bitstream, images, refinement, windows
from ugicm.codec import Codec
from ugicm.config import CompactConfig
from ugicm.entropy.likelihood import LikelihoodCoder
from ugicm.refinement import RelaxedCoder


@pytest.fixture(scope="module")
def shipped():
    return ugicm.load()


@pytest.fixture(scope="module")
def photo():
    return crop(120, 112)


def crop(width, height):
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        return images.open_rgb(path).crop((200, 100, 200 + width, 100 + height))


def squared_error(image, other):
    return float(np.square(np.asarray(image, float) - np.asarray(other, float)).sum())


@pytest.mark.parametrize("quality", [0.3, 0.7])  # at 0.1 a step of the file size is 3 %
def test_refinement_lowers_bits_at_equal_error(shipped, photo, quality):
    """The exchange rate of bits and error is that of the model around this quality."""

    def point(quality, effort=0):
        data = shipped.compress(photo, quality, effort=effort)
        return 8 * len(data), squared_error(photo, shipped.decompress(data))

    (fewer, worse), (more, better) = point(quality - 0.1), point(quality + 0.1)
    slope = (more - fewer) / (worse - better)
    bits, error = point(quality)
    refined_bits, refined_error = point(quality, effort=12)
    assert (refined_bits - bits) + slope * (refined_error - error) < -0.02 * bits


@pytest.mark.parametrize("backbone", ["compact", "mlicpp", "bmshj2018"])
def test_refined_bitstreams_decode_with_every_backbone(backbone):
    codec = Codec(small_model(backbone))
    before = {name: tensor.clone() for name, tensor in codec.model.state_dict().items()}
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 100, 3), dtype=np.uint8))
    plain = codec.compress(image)  # fills caches in inference mode
    refined = codec.compress(image, effort=2)
    assert codec.decompress(refined).size == (100, 70)
    assert refined == codec.compress(image, effort=2)
    assert plain == codec.compress(image, effort=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.model.state_dict().items())


def test_large_images_are_refined_in_windows(shipped, monkeypatch):
    photo = crop(190, 130)  # larger than a window of 64 and its halo
    whole = shipped.compress(photo, 0.6, effort=4)
    plain = {tile: shipped.compress(photo, 0.6, tile=tile) for tile in (0, 128)}
    monkeypatch.setattr(refinement, "WINDOW", 64)
    monkeypatch.setattr(CompactConfig, "halo", 64)
    tiled = shipped.compress(photo, 0.6, tile=128, effort=4)
    pieces = shipped.compress(photo, 0.6, effort=4)
    assert pieces != whole
    assert abs(len(pieces) / len(whole) - 1) < 0.02
    for data, tile in ((whole, 0), (pieces, 0), (tiled, 128)):  # bits and errors trade against each other
        after, before = (len(d) * squared_error(photo, shipped.decompress(d)) for d in (data, plain[tile]))
        assert after < before


def test_worse_results_are_discarded(shipped, photo, monkeypatch):
    monkeypatch.setattr(refinement, "LEARNING_RATE", 3.0)
    assert shipped.compress(photo, 0.5, effort=2) == shipped.compress(photo, 0.5)


def test_relaxed_coder_approaches_likelihood_coder(shipped, photo):
    model = shipped.model
    entropy_model, extent = model.entropy_model, (7, 8)
    with torch.inference_mode():
        y = model.analyze(images.pad_to(images.to_tensor(photo), 64), torch.tensor([0.5]))
        hyper = entropy_model.hyper_context(entropy_model.round_hyper(model.hyper_analyze(y)))
        relaxed, exact = RelaxedCoder(entropy_model, 1e-9, extent), LikelihoodCoder(entropy_model, extent)
        y_hat = entropy_model.slices(hyper, relaxed, y)
        assert torch.allclose(y_hat, entropy_model.slices(hyper, exact, y), atol=1e-4)
        assert float(relaxed.bits) == pytest.approx(float(-exact.y_likelihood.log2().sum()), rel=1e-4)


def test_negative_effort_is_an_error(shipped, photo):
    with pytest.raises(ValueError, match="effort is -1"):
        shipped.compress(photo, effort=-1)


@pytest.mark.parametrize("points", [((90, 4), (100, 5)), ((110, 5), (100, 5)), ((110, 6), (100, 5))])
def test_refinement_needs_a_positive_slope(shipped, photo, monkeypatch, points):
    """Finer quantization of a flat image may take fewer bits, or not reduce the error."""

    def rounded(problem, y, stretch=1.0):
        return tuple(torch.tensor(float(v)) for v in points[0 if stretch >= 1 else 1])

    monkeypatch.setattr(refinement._Problem, "_rounded", rounded)
    assert shipped.compress(photo, 0.5, effort=1) == shipped.compress(photo, 0.5)


def test_refinement_for_the_machine_preference(shipped):
    """The machine image comes closer to that of unrounded latents; bits differ from those for the human preference."""
    codec = shipped
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim19.png") as path:
        image = images.open_rgb(path).crop((100, 300, 228, 428))
    none, human = (codec.compress(image, effort=effort) for effort in (0, 15))
    machine = codec.compress(image, effort=15, effort_for="machine")
    assert len({none, human, machine}) == 3
    unrounded = image_of_unrounded_latents(codec, image)
    after, before = (len(d) * squared_error(unrounded, codec.decompress(d, "machine")) for d in (machine, none))
    assert after < 0.97 * before  # bits and errors trade against each other
    with pytest.raises(ValueError, match="for 'robot', must be"):
        codec.compress(image, effort=1, effort_for="robot")


@torch.inference_mode()
def image_of_unrounded_latents(codec, image):
    quality = torch.tensor([bitstream.quantize_quality(0.5)])
    y = windows.analyze(codec.model, images.to_levels(image, 64), quality)
    return np.asarray(images.from_tensor(codec.model.synthesize(y, torch.ones(1), quality)), float)
