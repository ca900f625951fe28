"""The plugin of Pillow, and libraries that open images with Pillow."""

import functools
import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import ugicm
from ugicm.codec import Codec
from ugicm.integrations import pillow, shared


@pytest.fixture(scope="module")
def codec() -> Codec:
    return shared.shared_codec()


@pytest.fixture
def bitstreams(tmp_path, codec, make_image):
    """A folder with bitstreams in two subfolders, and their data by path."""
    data = codec.compress([make_image(64, 48, 1), make_image(33, 70, 2), make_image(64, 64, 3)], 0.2)
    paths = [tmp_path / "cats" / "a.ugic", tmp_path / "dogs" / "b.ugic", tmp_path / "dogs" / "c.UGIC"]
    for path, one in zip(paths, data):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(one)
    return dict(zip(paths, data))


def levels(image) -> np.ndarray:
    return np.asarray(image, int)


def test_open_reads_the_header_and_load_decodes(bitstreams, codec, monkeypatch):
    path, data = next(iter(bitstreams.items()))
    calls, expected = [], levels(codec.decompress(data))
    decompress = Codec.decompress
    monkeypatch.setattr(Codec, "decompress", lambda *a, **k: calls.append(a[2]) or decompress(*a, **k))
    with Image.open(path) as image:
        assert (image.format, image.size, image.mode, calls) == ("UGIC", (64, 48), "RGB", [])
        assert image.info["fingerprint"] == codec.fingerprint and image.info["quality"] == pytest.approx(0.2, abs=1e-4)
        assert image.get_format_mimetype() == "image/x-ugic"
        image.load()
        image.load()
        assert calls == ["human"]
    assert np.array_equal(levels(image), expected)


@pytest.mark.parametrize("preference", ["machine", 0.3, np.full((48, 64), 0.7)])
def test_preference_is_chosen_before_loading(bitstreams, codec, preference):
    path, data = next(iter(bitstreams.items()))
    image = Image.open(path)
    image.preference = preference
    assert np.array_equal(levels(image), levels(codec.decompress(data, preference)))
    assert pickle.loads(pickle.dumps(image)).tobytes() == image.tobytes()


def test_register_chooses_the_preference_of_all_images(bitstreams, codec):
    path, data = next(iter(bitstreams.items()))
    try:
        pillow.register(preference="machine")
        assert np.array_equal(levels(Image.open(path)), levels(codec.decompress(data, "machine")))
    finally:
        pillow.register()
    assert np.array_equal(levels(pillow.load(path)), levels(codec.decompress(data)))


def test_save_takes_the_options_of_compress(tmp_path, codec, make_image):
    assert Image.registered_extensions()[".ugic"] == "UGIC"
    image = make_image(80, 64)
    image.save(tmp_path / "a.ugic", quality=0.1, effort=1)
    assert (tmp_path / "a.ugic").read_bytes() == codec.compress(image, 0.1, effort=1)
    image.convert("L").save(buffer := io.BytesIO(), "UGIC")
    assert buffer.getvalue() == codec.compress(image.convert("L"))
    with pytest.raises(ValueError, match="quality is 75.0, must be from 0"):
        image.save(tmp_path / "b.ugic", quality=75)
    assert not (tmp_path / "b.ugic").exists()


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_modes_and_metadata_are_kept(tmp_path, codec, make_image, mode):
    image = make_image(64, 48).convert(mode)
    if mode.endswith("A"):
        image.putalpha(make_image(64, 48, 5).convert("L"))
    exif = Image.Exif()
    exif[0x010E] = "a bird"
    image.info.update(exif=exif.tobytes(), xmp=b"<x:xmpmeta/>")
    image.save(tmp_path / "a.ugic", quality=0.2)
    with Image.open(tmp_path / "a.ugic") as again:
        assert (again.mode, again.getexif()[0x010E], again.info["xmp"]) == (mode, "a bird", b"<x:xmpmeta/>")
        decoded = codec.decompress(tmp_path / "a.ugic")
        assert decoded.mode == mode and again.tobytes() == decoded.tobytes()
    assert pillow.load(tmp_path / "a.ugic").mode == "RGB"


def test_broken_files_raise_what_pillow_raises(bitstreams, tmp_path):
    data = next(iter(bitstreams.values()))
    image = Image.open(io.BytesIO(data[:-10]))
    with pytest.raises(OSError, match="corrupt bitstream"):
        image.load()
    for broken in (data[:9], data[:3], b"UGI\0" + data[4:]):
        with pytest.raises(Image.UnidentifiedImageError), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Image.open(io.BytesIO(broken))
    assert ["version 0 of ugicm bitstreams is not supported"] == [str(warning.message) for warning in caught]
    huge = data[:7] + b"\xff\xff\xff\xff\x07" * 2 + data[9:]
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(huge))


@pytest.fixture
def two_loads(monkeypatch):
    """Forget loaded codecs, and count loads."""
    loads = []
    monkeypatch.setattr(shared, "_codecs", {})
    monkeypatch.setattr("ugicm.codec.load", lambda *a, load=ugicm.codec.load: loads.append(a) or load(*a))
    return loads


def test_the_codec_is_loaded_once_in_all_threads(bitstreams, two_loads):
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda path: pillow.load(path).tobytes(), [*bitstreams] * 3))
    assert len(two_loads) == 1
    assert images[:3] == images[3:6] == images[6:]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_torchvision_image_folder_in_workers(bitstreams, codec, method):
    datasets = pytest.importorskip("torchvision.datasets")
    transforms = pytest.importorskip("torchvision.transforms.v2")
    loader = functools.partial(pillow.load, preference="machine")
    data = datasets.ImageFolder(
        next(iter(bitstreams)).parents[1], transforms.PILToTensor(), loader=loader, is_valid_file=pillow.is_bitstream
    )
    workers = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method)
    found = list(workers)
    assert [label for _, label in found] == [0, 1, 1]
    for (tensor, _), one in zip(found, bitstreams.values()):
        assert torch.equal(tensor, codec.decompress(one, "machine", output="tensor"))


def test_imageio(bitstreams, codec):
    imageio = pytest.importorskip("imageio.v3")
    path, data = next(iter(bitstreams.items()))
    assert np.array_equal(imageio.imread(path), levels(codec.decompress(data)))
    assert np.array_equal(imageio.imread(data), levels(codec.decompress(data)))


def test_datasets_of_hugging_face(bitstreams, codec):
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    table = datasets.Dataset.from_dict({"image": [str(path) for path in bitstreams]})
    table = table.cast_column("image", datasets.Image())
    for row, one in zip(table, bitstreams.values()):
        assert np.array_equal(levels(row["image"]), levels(codec.decompress(one)))


def test_importing_the_plugin_is_quick(run_python):
    program = "import sys, ugicm.integrations.pillow; print('torch' in sys.modules)"
    assert run_python("-c", program).stdout == "False\n"
