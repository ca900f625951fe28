"""More bits for a part of an image."""

import runpy
from importlib import resources

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from small_models import small_model

import ugicm
from ugicm import images
from ugicm.codec import Codec
from ugicm.commands.main import main
from ugicm.quality_map import emphasize


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        return images.open_rgb(path).crop((200, 100, 456, 292))


@pytest.fixture(scope="module")
def inside() -> np.ndarray:
    mask = np.zeros((192, 256))
    mask[48:144, 64:160] = 1
    return mask


def psnr(image: Image.Image, reference: Image.Image, weight: np.ndarray) -> float:
    error = np.square(np.asarray(image, float) - np.asarray(reference, float)).mean(2)
    return float(10 * np.log10(255**2 / (error * weight).sum() * weight.sum()))


def test_bits_move_to_where_the_map_is_white(photo, inside):
    codec = ugicm.load()
    plain = codec.compress(photo, 0.3)
    mapped = next(
        data for quality in np.arange(0.6, 0, -0.02)
        if len(data := codec.compress(emphasize(codec, photo, inside), quality)) <= len(plain)
    )  # fmt: skip
    before, after = codec.decompress([plain, mapped])
    assert psnr(after, photo, inside) > psnr(before, photo, inside) + 0.7
    assert psnr(after, photo, 1 - inside) < psnr(before, photo, 1 - inside)


def test_script_compares_files_of_equal_size(photo, inside):
    script = runpy.run_path(str(ROOT / "scripts" / "eval_quality_map.py"))
    found = script["measure"](ugicm.load(), photo, inside, 0.3)
    assert 0.8 * found["bytes"] < found["bytes_map"] <= found["bytes"] and found["quality_map"] > 0.3
    assert found["inside_map"] > found["inside"] and found["outside_map"] < found["outside"]


def test_white_and_black_maps(photo):
    codec = ugicm.load()
    assert emphasize(codec, photo, Image.new("L", photo.size, 255)).rgb == photo
    assert emphasize(codec, photo, 0).rgb == codec.decompress(codec.compress(photo, 0.0))


def test_gray_images_and_alpha_are_kept(photo, inside):
    codec, image = ugicm.load(), photo.convert("LA")
    image.putalpha(Image.fromarray((255 * inside).astype(np.uint8)))
    decoded = codec.decompress(codec.compress(emphasize(codec, image, inside)))
    assert decoded.mode == "LA" and decoded.getchannel("A") == image.getchannel("A")


def test_invalid_maps_are_errors(photo):
    codec = ugicm.load()
    with pytest.raises(ValueError, match="quality map is a number or a map of the image's size 256x192"):
        emphasize(codec, photo, np.ones((5, 5)))
    with pytest.raises(ValueError, match="quality map must be from 0 to 1"):
        emphasize(codec, photo, np.full((192, 256), 2.0))
    with pytest.raises(ValueError, match="single rate"):
        emphasize(Codec(small_model("bmshj2018")), photo, 1)


def test_command(photo, inside, tmp_path):
    photo.save(tmp_path / "a.png")
    mask = Image.fromarray((255 * inside).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    arguments = ["compress", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.ugic"), "-q", "0.4"]
    assert main([*arguments, "--quality-map", str(tmp_path / "mask.png")]) == 0
    codec = ugicm.load()
    assert (tmp_path / "a.ugic").read_bytes() == codec.compress(emphasize(codec, photo, mask), 0.4)
