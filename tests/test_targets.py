"""Compression to a size, to bits per pixel and to a PSNR, and images that are stored without loss."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small_models import small_model

import ugicm
from ugicm import bitstream, images, stored
from ugicm.codec import Codec
from ugicm.errors import StreamError, UgicmError
from ugicm.evaluation.metrics import psnr
from ugicm.targets import Reached, Target, _search, compress_to


@pytest.fixture(scope="module")
def codec():
    return ugicm.load()


@pytest.fixture(scope="module")
def photo():
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        return images.SourceImage(images.open_rgb(path).crop((200, 150, 330, 250)))


@pytest.mark.parametrize("target", [Target("size", 900), Target("size", 1500), Target("bpp", 0.8), Target("psnr", 36)])
def test_target_is_met_nearly(codec, photo, target):
    reached = compress_to(codec, photo, target)
    parsed = bitstream.parse(reached.data)
    assert parsed.quality == reached.quality and 0 < reached.quality < 1
    if target.kind == "psnr":
        found = psnr(photo.rgb, codec.decompress(reached.data))
        assert found == pytest.approx(reached.psnr) and 36 <= found <= 36.3
    else:
        size = target.value if target.kind == "size" else target.value * 130 * 100 / 8
        assert 0.95 * size <= len(reached.data) <= size and reached.psnr is None
    # The same file as with this quality, but for values that lie halfway between two integers.
    assert abs(len(codec.compress(photo, reached.quality)) - len(reached.data)) <= 4


def test_targets_beyond_the_range(codec, photo):
    assert compress_to(codec, photo, Target("size", 10**6)).quality == 1
    assert compress_to(codec, photo, Target("psnr", 1)).quality == 0
    with pytest.raises(UgicmError, match="^quality 0 takes [0-9]+ bytes, more than 50$"):
        compress_to(codec, photo, Target("size", 50))
    with pytest.raises(UgicmError, match="^quality 1 does not reach 90 dB$"):
        compress_to(codec, photo, Target("psnr", 90))
    with pytest.raises(ValueError, match="one rate"):
        compress_to(Codec(small_model("bmshj2018")), photo, Target("size", 1000))


def test_search_analyzes_once_and_tries_little(codec, photo, monkeypatch):
    calls = []
    analyze, encode = codec.model.analyze, codec.model.entropy_encode
    monkeypatch.setattr(codec.model, "analyze", lambda *a: calls.append("analyze") or analyze(*a))
    monkeypatch.setattr(codec.model, "entropy_encode", lambda *a: calls.append("encode") or encode(*a))
    for size in (700, 1000, 1500, 2200):
        compress_to(codec, photo, Target("size", size))
    assert calls.count("analyze") == 4 and calls.count("encode") <= 4 * 4


def test_search_for_a_psnr_synthesizes_little(codec, photo, monkeypatch):
    calls = []
    names = ("analyze", "synthesize_each", "entropy_encode", "entropy_decode")
    for name in names:
        function = getattr(codec.model, name)
        monkeypatch.setattr(codec.model, name, lambda *a, n=name, f=function: calls.append(n) or f(*a))
    for goal in (31, 33, 35, 36.5):
        compress_to(codec, photo, Target("psnr", goal))
    assert [calls.count(name) for name in names] == [4, pytest.approx(12, abs=3), 4, 0]


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("shape", [lambda q: q, lambda q: q**3, lambda q: q**0.3, lambda q: round(q * 8) / 8])
def test_search_ends_on_the_allowed_side(above, shape):
    for goal in np.linspace(0.01, 0.99, 30):
        best = _search(lambda q, goal=goal: (10 * (shape(q) - goal), Reached(b"", q, None)), 7.0, 0.1, above)
        assert (shape(best.quality) >= goal) if above else (shape(best.quality) <= goal)


# Stored images


def screenshot():
    image = Image.new("RGB", (200, 120), "white")
    draw = ImageDraw.Draw(image)
    for row in range(8):
        draw.text((4, 4 + 14 * row), "a line of text in a window", fill=(0, 30 * row, 90))
    return image


@pytest.mark.parametrize("image", [
    Image.new("RGB", (300, 200), "white"), screenshot(), screenshot().convert("L"), screenshot().convert("1"),
    Image.new("RGBA", (50, 50), (255, 0, 0, 100)),
], ids=["white", "screenshot", "gray", "dithered", "transparent"])  # fmt: skip
def test_stored_images_are_exact(codec, image):
    source = images.read(image)
    data = stored.pack(source)
    human, machine = codec.decompress(data, ["human", "machine"])
    assert human.tobytes() == machine.tobytes() == image.convert(human.mode).tobytes()
    assert human.mode == (image.mode if image.mode != "1" else "L")
    part = codec.decompress(data, region=(10, 20, 30, 5))
    assert part.tobytes() == image.convert(human.mode).crop((10, 20, 40, 25)).tobytes()
    assert Codec(small_model()).decompress(data).tobytes() == human.tobytes()  # of no model


def test_flat_images_take_a_few_bytes():
    assert len(stored.pack(images.SourceImage(Image.new("RGB", (3000, 2000), "white")))) < 500


def test_photographs_are_not_stored(photo):
    assert stored.pack(photo) is None


def test_hostile_stored_files_are_stream_errors(codec):
    parsed = bitstream.parse(stored.pack(images.read(screenshot())))
    other = bitstream.parse(stored.pack(images.SourceImage(Image.new("RGB", (201, 120))))).strings[0]
    for content in (b"", b"GIF89a", parsed.strings[0][:100], other):
        data = bitstream.Bitstream(200, 120, bytes(3), 0.0, 0, (0,), (content,), stored=True).pack()
        with pytest.raises(StreamError, match="what it stores is not a PNG or WebP file of the image's size"):
            codec.decompress(data)
