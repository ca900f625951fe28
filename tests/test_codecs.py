"""Codecs under evaluation: bytes without metadata, settings that cover a range of rates, zoo models from files."""

from __future__ import annotations

import io
import os
import struct
import sys
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from ugicm.atomic import WriteError
from ugicm.errors import CheckpointError, ConfigError, MissingPackageError, StreamError, UgicmError
from ugicm.evaluation import codecs
from ugicm.evaluation.metrics import file_bpp, psnr
from ugicm.evaluation.specs import natural_order, parse_spec, set_attributes

IMAGE = os.path.join(os.path.dirname(__file__), "..", "ugicm", "samples")
FORMATS = ["jpeg", "webp"] + (["avif:speed=8"] if "avif" in features.get_supported() else [])


@pytest.fixture(scope="module")
def image():
    name = sorted(n for n in os.listdir(IMAGE) if n.endswith(".png"))[0]
    return Image.open(os.path.join(IMAGE, name)).convert("RGB").resize((192, 128))


class JpegCodec:
    """A fake of ugicm.Codec: preferences darken a JPEG."""

    has_quality = True

    def compress(self, image, quality=0.5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(5 + 90 * quality))
        return buffer.getvalue()

    def decompress(self, data, preference):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [image.point(lambda v, b=b: int(v * (1 - 0.2 * b))) for b in preference]


@pytest.mark.parametrize("name", FORMATS)
def test_files_have_no_metadata(name, image):
    codec = codecs.load_codec(name)
    with_metadata = image.copy()
    with_metadata.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_metadata.info["comment"] = b"x" * 500
    exif = Image.Exif()
    exif[0x010E] = "a description " * 30
    with_metadata.info["exif"] = exif.tobytes()
    data = codec.encode(with_metadata, 50)
    assert data == codec.encode(image, 50)
    with Image.open(io.BytesIO(data)) as written:
        assert not written.info.get("icc_profile") and not dict(written.getexif())
    (decoded,) = codec.decode(data, (None,))
    assert decoded.mode == "RGB" and decoded.size == image.size
    assert psnr(image, decoded) > 25


def test_jpeg_xl_round_trip(image):
    pytest.importorskip("pillow_jxl")
    codec = codecs.load_codec("jxl")
    (decoded,) = codec.decode(codec.encode(image, 70), (None,))
    assert psnr(image, decoded) > 28


@pytest.mark.parametrize("name", FORMATS[:2])
def test_sweep_covers_rate_range(name, image):
    codec = codecs.load_codec(name)
    low, high = 0.7, 3.0
    settings = codecs.sweep(codec, [image], low, high, 5)
    rates = [file_bpp(codec.encode(image, s), image) for s in settings]
    assert 3 <= len(settings) <= 5 and rates == sorted(rates)
    assert rates[0] == pytest.approx(low, rel=0.15) and rates[-1] == pytest.approx(high, rel=0.15)
    # Beyond the range of a codec there is only its lowest or highest setting.
    assert codecs.sweep(codec, [image], 1e-4, 1e-3, 3) == [codec.lowest]
    assert codecs.sweep(codec, [image], 99, 100, 2) == [codec.highest]


def test_sweep_of_continuous_quality(image):
    codec = codecs.UgicmCodec(JpegCodec(), "ugicm", "fake")
    assert codec.settings is None
    rates = [file_bpp(codec.encode(image, s), image) for s in codecs.sweep(codec, [image], 0.8, 2.5, 3)]
    assert rates == pytest.approx([0.8, np.sqrt(2.0), 2.5], rel=0.1)
    human, machine = codec.decode(codec.encode(image, 0.5), codec.preferences)
    assert np.mean(machine) < np.mean(human)


@pytest.mark.parametrize(
    "names",
    [
        ["q1.pth", "q2.pth", "q10.pth"],
        ["lambda256.pth.tar", "lambda512.pth.tar", "lambda1024.pth.tar", "lambda2048.pth.tar"],
        ["mse_0.0018.pth", "mse_0.013.pth", "mse_0.1.pth"],
        ["bmshj2018-1-e522738d.pth.tar", "bmshj2018-2-034a7a1c.pth.tar", "bmshj2018-8-7e8aa1c2.pth.tar"],
    ],
)
def test_natural_order(names):
    """Files of rate points are ordered by the numbers in their names."""
    assert sorted(reversed(names), key=natural_order) == names


def test_sweep_of_rate_points_in_another_order():
    class Points:
        settings = (0.0, 1.0, 2.0, 3.0)

        def encode(self, image, setting):
            return b"x" * (4, 1, 8, 2)[int(setting)]

    image = Image.new("RGB", (8, 1))
    assert codecs.sweep(Points(), [image], 1.5, 3, 9) == [0.0, 1.0, 3.0]  # rates 2, and the nearest 1 and 4


@pytest.mark.parametrize("error", [struct.error("x"), OSError("encoder error -2"), KeyError("x"), MemoryError()])
def test_failures_of_codecs_are_named(error):
    with pytest.raises(UgicmError, match="^a.png: JPEG at 5: "), codecs.failures_named("a.png: JPEG at 5"):
        raise error


def test_a_full_disk_is_no_failure_of_an_image():
    with pytest.raises(WriteError), codecs.failures_named("x"):
        raise WriteError("x", OSError(28, "No space left on device"))


def test_sweep_of_fixed_rate_points():
    class Points:
        settings = (0.0, 1.0, 2.0, 3.0, 4.0)

        def encode(self, image, setting):
            return b"x" * 2 ** int(setting)

    image = Image.new("RGB", (8, 1))  # rates 1 2 4 8 16
    assert codecs.sweep(Points(), [image], 3, 5, 9) == [1.0, 2.0, 3.0]
    assert codecs.sweep(Points(), [image], 0.1, 1.5, 9) == [0.0, 1.0]
    assert codecs.nearest_setting(Points(), lambda s: 2.0**s, 7) == 3.0


@pytest.fixture(scope="module")
def zoo_file(tmp_path_factory):
    """Two rate points of CompressAI's smallest model, with random weights."""
    FactorizedPrior = pytest.importorskip("compressai.models", reason="models of CompressAI").FactorizedPrior
    folder = tmp_path_factory.mktemp("zoo")
    for point in range(2):
        torch.manual_seed(point)
        model = FactorizedPrior(8, 12)
        model.update()
        torch.save({"network": model.state_dict()} if point else model.state_dict(), folder / f"q{point}.pth.tar")
    return folder


def test_zoo_models_from_local_files(zoo_file, image):
    codec = codecs.load_codec(f"zoo/bmshj2018-factorized={zoo_file}:label=factorized")
    assert codec.label == "factorized" and codec.settings == (0.0, 1.0)
    odd = image.crop((0, 0, 97, 61))
    for setting in codec.settings:
        data = codec.encode(odd, setting)
        (decoded,) = codec.decode(data, (None,))
        assert decoded.size == odd.size
        # The same image as the model's own calls give.
        x = torch.from_numpy(np.array(odd)).permute(2, 0, 1)[None] / 255
        x = torch.nn.functional.pad(x, (0, 31, 0, 3), mode="replicate")
        model = codec.models[int(setting)]
        out = model.compress(x)
        x_hat = model.decompress(**out)["x_hat"][0, :, :61, :97].clamp(0, 1)
        assert np.array_equal(np.array(decoded), x_hat.mul(255).round().byte().permute(1, 2, 0).numpy())
        assert len(data) == 10 + sum(4 + len(s[0]) for s in out["strings"])
    with pytest.raises(StreamError):
        codec.decode(data[:7], (None,))


def test_error_without_compressai_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "compressai", None)
    with pytest.raises(MissingPackageError, match=r'zoo/mbt2018 needs compressai: .*\[compressai\]"'):
        codecs.load_codec("zoo/mbt2018")


def test_checked_setting():
    ugicm_codec, webp = codecs.UgicmCodec(JpegCodec(), "ugicm", "fake"), codecs.load_codec("webp")
    assert codecs.checked_setting(ugicm_codec, 0.3) == 0.3 and codecs.checked_setting(webp, 0.0) == 0.0
    assert codecs.checked_setting(ugicm_codec, None) == 0.5
    for codec, quality, numbers in (
        (ugicm_codec, 30.0, "numbers from 0 to 1"), (webp, 0.5, "integers from 0 to 100"),
        (webp, None, "integers from 0 to 100"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{codec.label} takes {numbers}"):
            codecs.checked_setting(codec, quality)


def test_checked_setting_of_zoo_models(zoo_file):
    zoo = codecs.load_codec(f"zoo/bmshj2018-factorized={zoo_file}")
    assert codecs.checked_setting(zoo, 1.0) == 1.0
    for quality in (None, 0.5, 2.0):
        with pytest.raises(ConfigError, match=f"{zoo.label} takes integers from 0 to 1"):
            codecs.checked_setting(zoo, quality)


def test_errors_list_what_is_available():
    with pytest.raises(ConfigError, match="available: jpeg, webp"):
        codecs.load_codec("bpg")
    with pytest.raises(ConfigError, match="unknown option 'metod'; available: method"):
        codecs.load_codec("webp:metod=3")


def test_errors_of_zoo_models(zoo_file, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="zoo/bmshj2018-factorized=PATH"):
        codecs.load_codec("zoo/bmshj2018-factorized")
    with pytest.raises(ConfigError, match="available: bmshj2018"):
        codecs.load_codec("zoo/nothing")
    with pytest.raises(CheckpointError, match="not weights of"):
        codecs.load_codec(f"zoo/mbt2018={zoo_file / 'q0.pth.tar'}")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list.pth: expected a state dict of named tensors, found list"):
        codecs.load_codec(f"zoo/mbt2018={tmp_path / 'list.pth'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="one per rate"):
        codecs.load_codec(f"zoo/mbt2018={tmp_path / 'empty'}")


def test_parse_spec_and_set_attributes():
    spec = parse_spec(r"timm/vit@x=C:\weights\v.pth:normalize=none:head.padding=1:label=A b")
    assert (spec.name, spec.where) == ("timm/vit@x", r"C:\weights\v.pth")
    assert spec.options == {"normalize": "none", "head.padding": 1, "label": "A b"}
    assert spec.label == "A b" and spec.attributes == {"head.padding": 1}
    assert parse_spec("open_clip/ViT-B-32=openai").where == "openai"
    assert parse_spec("timm/resnet18").label == "resnet18"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    set_attributes(network, {"0.padding": 1}, "x")
    assert network[0].padding == (1, 1)
    with pytest.raises(ConfigError, match="no '0.pad'"):
        set_attributes(network, {"0.pad": 1}, "x")
    with pytest.raises(ConfigError, match="expected NAME"):
        parse_spec("=path")
