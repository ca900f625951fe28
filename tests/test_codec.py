"""The promised interface: pictures to bytes and back."""

import copy
import pickle
import warnings
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import small_model

import ugicm
from ugicm import checkpoint, pictures
from ugicm.codec import Codec
from ugicm.coding import stream
from ugicm.coding.coders import inside_mask
from ugicm.models.full_float32 import _switches, full_float32


@pytest.fixture(scope="module")
def codec():
    return Codec(small_model())


def picture(width=100, height=70, seed=0):
    rng = np.random.default_rng(seed)
    low = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return low.resize((width, height), Image.BICUBIC)


def test_round_trip_and_determinism(codec):
    image = picture()
    data = codec.compress(image, quality=0.5)
    assert isinstance(data, bytes)
    assert data == codec.compress(image, 0.5)
    decoded = codec.decompress(data)
    assert (decoded.size, decoded.mode) == (image.size, "RGB")


def test_a_list_of_preferences_gives_a_list_of_pictures_parsed_once(codec, monkeypatch):
    data = codec.compress(picture())
    alone = [np.asarray(codec.decompress(data, p)) for p in (0.0, 0.5, 1.0)]
    calls = []
    parse = codec.model.decompress
    monkeypatch.setattr(codec.model, "decompress", lambda *a: calls.append(1) or parse(*a))
    together = codec.decompress(data, ["human", 0.5, "machine"])
    assert len(calls) == 1
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
    assert not np.array_equal(alone[0], alone[2])
    assert codec.decompress(data, []) == []


def test_a_preference_map_chooses_by_place(codec):
    data = codec.compress(picture(128, 64))
    human, machine = (np.asarray(image, int) for image in codec.decompress(data, [0.0, 1.0]))
    mask = np.zeros((64, 128), np.float32)
    mask[:, 64:] = 1
    mixed = np.asarray(codec.decompress(data, mask), int)
    assert np.abs(mixed[:, :8] - human[:, :8]).max() <= 1
    assert np.abs(mixed[:, -8:] - machine[:, -8:]).max() <= 1
    as_picture = Image.fromarray((mask * 255).astype(np.uint8))
    assert np.array_equal(np.asarray(codec.decompress(data, as_picture), int), mixed)


def test_a_grey_map_of_any_kind_means_the_same(codec):
    data = codec.compress(picture(64, 64))
    levels = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    maps = [
        Image.fromarray(np.rint(levels * 255).astype(np.uint8)),
        Image.fromarray(np.rint(levels * 65535).astype(np.uint16)),
        Image.fromarray(np.rint(levels * 65535).astype(np.int32)),
        Image.fromarray(levels),
    ]
    assert [m.mode for m in maps] == ["L", "I;16", "I", "F"]
    first, *others = (np.asarray(image, int) for image in codec.decompress(data, maps))
    assert all(np.abs(other - first).max() <= 1 for other in others)
    assert not np.array_equal(first, np.asarray(codec.decompress(data, "machine"), int))


def test_two_codecs_of_one_model(codec):
    data = codec.compress(picture())
    again = Codec(codec.model)
    assert again.fingerprint == codec.fingerprint
    assert again.compress(picture()) == data
    assert codec.decompress(data) == again.decompress(data)


@pytest.mark.parametrize("region", [(0.0, 0.0, 10.0, 10.0), (0, 0, 10), "0000", 5, (0, 0, 0, 10), (90, 0, 20, 10)])
def test_regions_that_make_no_sense_are_named(codec, region):
    with pytest.raises(ValueError, match="region"):
        codec.decompress(codec.compress(picture()), region=region)


def test_a_picture_without_pixels(codec):
    with pytest.raises(ugicm.PictureError, match="0x5 has no pixels"):
        codec.compress(Image.new("RGB", (0, 5)))


def test_tiles_have_no_seams_and_regions_decode_alone(codec, monkeypatch):
    image = picture(300, 260)
    data = codec.compress(image, tile=128)
    parsed = stream.parse(data)
    assert len(parsed.strings) == 9
    whole = np.asarray(codec.decompress(data, 1.0), int)
    box = (150, 90, 60, 70)
    part = codec.decompress(data, 1.0, region=box)
    assert part.size == (60, 70)
    assert np.abs(np.asarray(part, int) - whole[90:160, 150:210]).max() <= 1
    monkeypatch.setattr("ugicm.codec.WINDOW", 128)  # synthesis and analysis in many windows: the same picture
    assert np.abs(np.asarray(codec.decompress(data, 1.0), int) - whole).max() <= 1
    again = np.asarray(codec.decompress(codec.compress(image, tile=128), 1.0), int)
    assert np.abs(again - whole).mean() < 0.05  # a rounding or two may fall the other way


def test_a_region_reads_only_the_tiles_it_needs(codec, monkeypatch):
    data = codec.compress(picture(640, 128), tile=64)
    read = []
    tile = codec._read_tile
    monkeypatch.setattr(codec, "_read_tile", lambda parsed, i, box: read.append(box) or tile(parsed, i, box))
    codec.decompress(data, region=(0, 0, 20, 20))
    assert 0 < len(read) <= 6
    with pytest.raises(ValueError, match="not inside the picture of 640x128"):
        codec.decompress(data, region=(630, 0, 20, 20))
    with pytest.raises(ValueError, match="multiple of 64"):
        codec.compress(picture(), tile=100)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150), quality=st.floats(0, 1))
def test_any_size_and_quality(codec, width, height, quality):
    image = picture(width, height)
    data = codec.compress(image, quality)
    assert codec.decompress(data, 1.0).size == (width, height)
    parsed = stream.parse(data)
    assert (parsed.width, parsed.height) == (width, height)
    assert len(data) - parsed.payload_bytes <= 32


@pytest.mark.parametrize("version", [1, 2])
def test_streams_of_older_versions_are_still_read(codec, version):
    image = picture(96, 70)
    now = stream.parse(codec.compress(image, 0.5))
    x = pictures.pad_to(pictures.to_tensor(image), 64)
    old = replace(now, version=version)
    with torch.no_grad():
        y = codec.model.analyse(x, torch.tensor([now.quality]))
        strings, digests = codec.model.write(y, codec.model.h_a(y), old.inside(old.padded))
    before = replace(old, strings=tuple(strings), digests=tuple(digests)).pack()
    assert (len(before) > len(now.pack())) == (version == 1)
    assert codec.decompress(before).size == image.size
    with pytest.raises(ugicm.StreamError, match="damaged"):
        codec.decompress(replace(stream.parse(before), version=3).pack())


@pytest.mark.parametrize("size", [(16, 16), (224, 224), (222, 80), (240, 480)])
def test_edges_are_as_good_as_the_rest(size):
    shipped = ugicm.load()
    white = np.asarray(shipped.decompress(shipped.compress(Image.new("RGB", size, "white"), 1.0)))
    assert white.min() >= 245
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        photo = pictures.open_rgb(path).crop((200, 10, 200 + size[0], 10 + size[1]))
    error = np.square(np.asarray(shipped.decompress(shipped.compress(photo, 1.0)), float) - np.asarray(photo)).mean(2)
    edge = np.concatenate([error[-4:].ravel(), error[:, -4:].ravel()]).mean()
    assert edge < 1.6 * error.mean()


def test_written_bits_are_the_estimated_bits(codec):
    image = picture(256, 192)
    for quality in (0.1, 0.9):
        bits = 8 * stream.parse(codec.compress(image, quality)).payload_bytes
        estimate = codec.estimate_bits(image, quality)
        assert abs(bits - estimate) <= 0.01 * estimate + 64


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_quality_and_preference_out_of_range(codec, bad):
    with pytest.raises(ValueError, match="quality"):
        codec.compress(picture(), bad)
    data = codec.compress(picture())
    with pytest.raises(ValueError, match="preference"):
        codec.decompress(data, bad)


def test_preferences_that_make_no_sense_are_named(codec):
    data = codec.compress(picture())
    with pytest.raises(ValueError, match="'robot' not found; available: human, machine"):
        codec.decompress(data, "robot")
    with pytest.raises(ValueError, match="picture's size 100x70"):
        codec.decompress(data, np.zeros((10, 10)))


def test_another_model_refuses_the_stream(codec):
    other = Codec(small_model(seed=1))
    with pytest.raises(ugicm.StreamError, match="another model.*" + codec.fingerprint):
        other.decompress(codec.compress(picture()))


def test_a_wrong_parse_is_noticed_by_the_digest(codec):
    parsed = stream.parse(codec.compress(picture()))
    payload = bytearray(parsed.strings[0])
    payload[len(payload) // 2] ^= 0x10
    forged = replace(parsed, strings=(bytes(payload),)).pack()
    with pytest.raises(ugicm.StreamError, match="symbols do not match"):
        codec.decompress(forged)


@pytest.mark.parametrize("backbone", ["mlicpp", "bmshj2018"])
def test_one_rate_models_say_so_once(backbone):
    codec = Codec(small_model(backbone))
    assert not codec.has_quality
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = codec.compress(picture())
    with pytest.warns(UserWarning, match="one rate"):
        assert codec.compress(picture(), 0.9) == data
    assert codec.decompress(data).size == (100, 70)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("backbone", ["compact", "mlicpp"])
def test_what_callers_set_for_their_own_networks_has_no_effect(backbone, tmp_path, default_dtype):
    model = small_model(backbone)
    model.config = replace(model.config, parsing="float32" if backbone == "mlicpp" else "fixed")
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, model)
    image = picture(100, 70)

    def use() -> tuple:
        codec = ugicm.load(path)
        data = codec.compress(image, tile=64)
        return codec.fingerprint, data, *(np.asarray(x).tolist() for x in codec.decompress(data, ["human", "machine"]))

    inside_mask.cache_clear()
    with torch.device("meta"):
        found = [use()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.append(use())
    for dtype in (torch.float64, torch.bfloat16):
        default_dtype(dtype)
        found.append(use())
    default_dtype(torch.float32)
    with torch.inference_mode():
        found.append(use())
    try:
        torch.set_float32_matmul_precision("medium")
        found.append(use()[:2])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(one == use()[: len(one)] for one in found)


@pytest.mark.parametrize("backbone", ["compact", "mlicpp"])
def test_products_are_not_rounded_while_parsing(backbone):
    model = small_model(backbone)
    model.config = replace(model.config, parsing="float32" if backbone == "mlicpp" else "fixed")
    codec = Codec(model)
    seen = []
    codec.model.parser.h_s.register_forward_hook(lambda *_: seen.append([s.get() for s in _switches()]))
    before = [s.get() for s in _switches()]
    data = codec.compress(picture())
    codec.decompress(data)
    exact = [s.exact for s in _switches()]
    assert seen == [exact if codec.model.parser.dtype == torch.float32 else before] * 2
    with full_float32(), full_float32():
        pass
    assert [s.get() for s in _switches()] == before


def test_a_codec_can_be_pickled():
    codec = Codec(small_model())
    data = pickle.loads(pickle.dumps(codec)).compress(picture(), effort=1)
    with torch.inference_mode():
        copied = copy.deepcopy(codec)
    assert data == codec.compress(picture(), effort=1) == copied.compress(picture(), effort=1)


def test_checkpoints_round_trip_and_halve(tmp_path):
    model = small_model()
    model.parser.build_tables()
    checkpoint.save_model(tmp_path / "full.safetensors", model, {"step": "7"})
    checkpoint.save_model(tmp_path / "half.safetensors", model, half=True)
    assert checkpoint.read_metadata(tmp_path / "full.safetensors")["step"] == "7"
    full = ugicm.load(tmp_path / "full.safetensors")
    data = full.compress(picture())
    assert Codec(model).compress(picture()) == data
    half = ugicm.load(tmp_path / "half.safetensors")
    assert half.decompress(half.compress(picture())).size == (100, 70)
    assert half.fingerprint != full.fingerprint
    with pytest.raises(ValueError, match="before prepare_for_coding"):
        checkpoint.save_model(tmp_path / "late.safetensors", full.model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full.safetensors", "half.safetensors"]


def test_unusable_checkpoints_are_named(tmp_path):
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    model = small_model()
    model.parser.build_tables()
    checkpoint.save_model(path, model)
    metadata = checkpoint.read_metadata(path)
    state = safetensors.torch.load_file(path)

    def broken(change):
        altered = {k: v.clone() for k, v in state.items()}
        change(altered)
        safetensors.torch.save_file(altered, tmp_path / "broken.safetensors", metadata)
        return tmp_path / "broken.safetensors"

    cases = {
        "missing tensors: g_a.stem.weight": lambda s: s.pop("g_a.stem.weight"),
        "unexpected tensors: extra": lambda s: s.update(extra=torch.zeros(1)),
        "wrong shapes: g_a.stem.bias is": lambda s: s.update({"g_a.stem.bias": torch.zeros(3)}),
        "not finite: g_s.up.bias": lambda s: s["g_s.up.bias"].fill_(float("nan")),
        "CDF does not rise": lambda s: s["parser.gaussian._quantized_cdf"].zero_(),
        "CDF lengths out of range": lambda s: s["parser.gaussian._cdf_length"].fill_(10**6),
        "CDF tables must be integers": lambda s: s.update(
            {"parser.gaussian._offset": s["parser.gaussian._offset"].bool()}
        ),
        "CDF offsets beyond": lambda s: s["parser.gaussian._offset"].fill_(-(2**31)),
        "no plain floating point tensors: g_a.stem.bias": lambda s: s.update(
            {"g_a.stem.bias": s["g_a.stem.bias"].to(torch.float8_e4m3fn)}
        ),
        "no plain floating point tensors: g_s.up.bias": lambda s: s.update({"g_s.up.bias": s["g_s.up.bias"].cfloat()}),
        "tabulated scales do not rise": lambda s: s["parser.gaussian.scale_table"].mul_(1e5),
        "tabulated scales do not": lambda s: s["parser.gaussian.scale_table"].neg_(),
        "quantiles of its factorised prior": lambda s: s["parser.bottleneck.quantiles"].mul_(1e7),
    }
    for says, change in cases.items():
        with pytest.raises(ugicm.CheckpointError, match=says):
            ugicm.load(broken(change))
    safetensors.torch.save_file(state, tmp_path / "deep.SAFETENSORS", {**metadata, "config": "[" * 100_000})
    with pytest.raises(ugicm.CheckpointError, match="deep.SAFETENSORS: maximum recursion"):
        ugicm.load(tmp_path / "deep.SAFETENSORS")
    endless = '{"N": ' + "1" * 5000 + "}"
    safetensors.torch.save_file(state, tmp_path / "endless.safetensors", {**metadata, "config": endless})
    with pytest.raises(ugicm.CheckpointError, match=r"endless.safetensors: .*\d digits"):
        ugicm.load(tmp_path / "endless.safetensors")
    with pytest.raises(ugicm.CheckpointError, match="is a folder"):
        ugicm.load(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ugicm.CheckpointError, match="cannot be read"):
        ugicm.load(path)
    with pytest.raises(ugicm.CheckpointError, match="no such file"):
        ugicm.load(tmp_path / "absent.safetensors")
