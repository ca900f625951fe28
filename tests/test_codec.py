"""The public interface: images to bytes and back."""

import copy
import os
import pickle
import stat
import warnings
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import CONFIGS, encode, small_model

import ugicm
from ugicm import bitstream, images
from ugicm.checkpoints import native, state_dict
from ugicm.codec import Codec
from ugicm.entropy.checkerboard import extent_mask
from ugicm.entropy.full_float32 import _switches, full_float32
from ugicm.entropy.likelihood import LikelihoodCoder
from ugicm.evaluation.metrics import psnr
from ugicm.models.ugicm import UGICM


@pytest.fixture(scope="module")
def codec():
    return Codec(small_model())


def make_image(width=100, height=70, seed=0):
    rng = np.random.default_rng(seed)
    low = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return low.resize((width, height), Image.BICUBIC)


def test_round_trip_and_determinism(codec):
    image = make_image()
    data = codec.compress(image, quality=0.5)
    assert isinstance(data, bytes)
    assert data == codec.compress(image, 0.5)
    decoded = codec.decompress(data)
    assert (decoded.size, decoded.mode) == (image.size, "RGB")


def test_decompress_decodes_once_for_a_list_of_preferences(codec, monkeypatch):
    data = codec.compress(make_image())
    alone = [np.asarray(codec.decompress(data, p)) for p in (0.0, 0.5, 1.0)]
    calls = []
    entropy_decode = codec.model.entropy_decode
    monkeypatch.setattr(codec.model, "entropy_decode", lambda *a: calls.append(1) or entropy_decode(*a))
    together = codec.decompress(data, ["human", 0.5, "machine"])
    assert len(calls) == 1
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
    assert not np.array_equal(alone[0], alone[2])
    assert codec.decompress(data, []) == []


def test_preference_map_varies_over_the_image(codec):
    data = codec.compress(make_image(128, 64))
    human, machine = (np.asarray(image, int) for image in codec.decompress(data, [0.0, 1.0]))
    mask = np.zeros((64, 128), np.float32)
    mask[:, 64:] = 1
    mixed = np.asarray(codec.decompress(data, mask), int)
    assert np.abs(mixed[:, :8] - human[:, :8]).max() <= 1
    assert np.abs(mixed[:, -8:] - machine[:, -8:]).max() <= 1
    as_image = Image.fromarray((mask * 255).astype(np.uint8))
    assert np.array_equal(np.asarray(codec.decompress(data, as_image), int), mixed)


def test_preference_maps_of_all_gray_modes_are_equal(codec):
    data = codec.compress(make_image(64, 64))
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


def test_preference_map_of_ones_equals_one(codec):
    data = codec.compress(make_image(100, 70))
    whole, mapped = (np.asarray(image, int) for image in codec.decompress(data, [1.0, np.ones((70, 100), np.float32)]))
    assert np.abs(whole - mapped).max() <= 1


def test_two_codecs_can_share_a_model(codec):
    data = codec.compress(make_image())
    again = Codec(codec.model)
    assert again.fingerprint == codec.fingerprint
    assert again.compress(make_image()) == data
    assert codec.decompress(data) == again.decompress(data)


@pytest.mark.parametrize("region", [(0.0, 0.0, 10.0, 10.0), (0, 0, 10), "0000", 5, (0, 0, 0, 10), (90, 0, 20, 10)])
def test_decompress_rejects_invalid_regions(codec, region):
    with pytest.raises(ValueError, match="region"):
        codec.decompress(codec.compress(make_image()), region=region)


def test_compress_rejects_images_without_pixels(codec):
    with pytest.raises(ugicm.ImageError, match="0x5 has no pixels"):
        codec.compress(Image.new("RGB", (0, 5)))


def test_tiles_have_no_seams_and_regions_match(codec, monkeypatch):
    image = make_image(300, 260)
    data = codec.compress(image, tile=128)
    parsed = bitstream.parse(data)
    assert len(parsed.strings) == 9
    whole = np.asarray(codec.decompress(data, 1.0), int)
    box = (150, 90, 60, 70)
    part = codec.decompress(data, 1.0, region=box)
    assert part.size == (60, 70)
    assert np.abs(np.asarray(part, int) - whole[90:160, 150:210]).max() <= 1
    monkeypatch.setattr("ugicm.windows.WINDOW", 128)  # analysis and synthesis in many windows
    assert np.abs(np.asarray(codec.decompress(data, 1.0), int) - whole).max() <= 1
    again = np.asarray(codec.decompress(codec.compress(image, tile=128), 1.0), int)
    assert np.abs(again - whole).mean() < 0.05  # few symbols may be rounded differently


def test_decompress_region_decodes_only_the_necessary_tiles(codec, monkeypatch):
    data = codec.compress(make_image(640, 128), tile=64)
    read = []
    tile = codec._decode_tile
    monkeypatch.setattr(codec, "_decode_tile", lambda parsed, i, box: read.append(box) or tile(parsed, i, box))
    codec.decompress(data, region=(0, 0, 20, 20))
    assert 0 < len(read) <= 6


def test_large_images_are_tiled_by_padded_size(codec, monkeypatch):
    monkeypatch.setattr("ugicm.tiling.TILE", 64)
    monkeypatch.setattr("ugicm.tiling.TILED_FROM", 2 * 64 * 64)
    sides = [bitstream.parse(codec.compress(make_image(*size))).tile for size in ((128, 64), (129, 30))]
    assert sides == [0, 64]


def reach(forward, x, stride_in, stride_out):
    """Return how many pixels beyond the middle position of the output, [.., H, W], it depends on."""
    out = forward(x.requires_grad_())
    ends = []
    middle = [side // 2 for side in out.shape[2:]]
    out[0, :, middle[0], middle[1]].square().sum().backward()
    for positions, at in zip(x.grad[0].abs().sum(0).nonzero().T, middle):
        first, last = int(positions.min()) * stride_in, int(positions.max() + 1) * stride_in
        ends += [at * stride_out - first, last - (at + 1) * stride_out]
    return max(ends)


@pytest.mark.parametrize("form", ["shipped", "deep", "shallow", "tail", "mlicpp", "bmshj2018"])
def test_halo_covers_the_receptive_field(form):
    if form == "shipped":  # with its depths
        deep = ugicm.load().config
        depths = {name: getattr(deep, name) for name in ("depth_8", "depth_16", "machine_depth")}
        config = replace(CONFIGS["compact"], **depths)
    elif form in ("deep", "shallow"):
        depth = 7 if form == "deep" else 1
        config = replace(CONFIGS["compact"], depth_8=depth, depth_16=depth)
    elif form == "tail":
        config = replace(CONFIGS["compact"], machine_depth=3)
    else:
        config = replace(CONFIGS[form], N=4, M=8, **({"slice_widths": (4, 4)} if form == "mlicpp" else {}))
    torch.manual_seed(0)
    model = UGICM(config).train()
    if config.backbone == "compact":
        torch.nn.init.normal_(model.g_s.machine.head.weight)
    machine, quality = torch.ones(1), torch.tensor([0.5])
    analyzed = reach(model.g_a, torch.rand(1, 3, 512, 512), 1, 16)
    synthesized = reach(lambda y: model.synthesize(y, machine, quality), torch.randn(1, config.M, 32, 32), 16, 1)
    assert config.halo - 64 <= max(analyzed, synthesized) <= config.halo


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150), quality=st.floats(0, 1))
def test_round_trip_of_any_size_and_quality(codec, width, height, quality):
    image = make_image(width, height)
    data = codec.compress(image, quality)
    assert codec.decompress(data, 1.0).size == (width, height)
    parsed = bitstream.parse(data)
    assert (parsed.width, parsed.height) == (width, height)
    assert len(data) - parsed.payload_bytes <= 32


@torch.inference_mode()
@pytest.mark.parametrize("tile", [0, 64])
def test_entropy_decode_returns_latents_for_synthesis(codec, tile):
    image = make_image(100, 70)
    data = codec.compress(image, 0.5, tile=tile)
    parsed = bitstream.parse(data)
    y_hat = codec.entropy_decode(parsed)
    assert (y_hat.shape, y_hat.dtype) == ((1, codec.config.M, 8, 8), torch.float32)
    x_hat = codec.model.synthesize(y_hat, torch.tensor([1.0]), torch.tensor([parsed.quality]))
    assert (x_hat.shape, x_hat.dtype) == ((1, 3, 128, 128), torch.float32)
    (decoded,) = codec.synthesize(parsed, y_hat, [torch.tensor([1.0])])
    assert np.array_equal(decoded, codec.decompress(data, "machine"))
    assert np.array_equal(decoded, images.from_tensor(x_hat[..., :70, :100]))


@pytest.mark.parametrize("size", [(16, 16), (224, 224), (222, 80), (240, 480)])
def test_edges_are_as_good_as_the_interior(size):
    shipped = ugicm.load()
    white = np.asarray(shipped.decompress(shipped.compress(Image.new("RGB", size, "white"), 1.0)))
    assert white.min() >= 240
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        photo = images.open_rgb(path).crop((200, 10, 200 + size[0], 10 + size[1]))
    error = np.square(np.asarray(shipped.decompress(shipped.compress(photo, 1.0)), float) - np.asarray(photo)).mean(2)
    edge = np.concatenate([error[-4:].ravel(), error[:, -4:].ravel()]).mean()
    assert edge < 1.6 * error.mean()


def test_coded_bits_match_the_estimate(codec):
    image = make_image(250, 190)
    x = images.pad_to(images.to_tensor(image), 64)
    for quality in (0.1, 0.9):
        parsed = bitstream.parse(codec.compress(image, quality))
        bits, coder = 8 * parsed.payload_bytes, LikelihoodCoder(codec.model.entropy_model, parsed.extent(parsed.padded))
        with torch.no_grad():
            y = codec.model.analyze(x, torch.tensor([parsed.quality]))
            codec.model.entropy_model(coder, codec.model.hyper_analyze(y), y)
        estimate = float(sum(-v.double().log2().sum() for v in (coder.y_likelihood, coder.z_likelihood)))
        assert abs(bits - estimate) <= 0.01 * estimate + 64


def test_compress_rejects_invalid_tiles(codec):
    with pytest.raises(ValueError, match="multiple of 64"):
        codec.compress(make_image(), tile=100)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_quality_and_preference_out_of_range_are_errors(codec, bad):
    with pytest.raises(ValueError, match="quality"):
        codec.compress(make_image(), bad)
    data = codec.compress(make_image())
    with pytest.raises(ValueError, match="preference"):
        codec.decompress(data, bad)


def test_decompress_rejects_invalid_preferences(codec):
    data = codec.compress(make_image())
    with pytest.raises(ValueError, match="'robot' not found; available: human, machine"):
        codec.decompress(data, "robot")
    with pytest.raises(ValueError, match="image's size 100x70"):
        codec.decompress(data, np.zeros((10, 10)))


def test_decompress_rejects_bitstreams_of_another_model(codec):
    other = Codec(small_model(seed=1))
    with pytest.raises(ugicm.StreamError, match="another model.*" + codec.fingerprint):
        other.decompress(codec.compress(make_image()))


def test_digest_detects_wrong_symbols(codec):
    parsed, other = (bitstream.parse(codec.compress(make_image(seed=seed))) for seed in (0, 1))
    with pytest.raises(ugicm.StreamError, match="symbols do not match"):
        codec.decompress(replace(parsed, strings=other.strings).pack())
    payload = bytearray(parsed.strings[0])
    payload[len(payload) // 2] ^= 0x10
    with pytest.raises(ugicm.StreamError, match="corrupt bitstream"):
        codec.decompress(replace(parsed, strings=(bytes(payload),)).pack())


def test_each_tile_has_its_own_digest(codec):
    parsed = bitstream.parse(codec.compress(make_image(128, 64), tile=64))
    for i in range(2):
        digests = list(parsed.digests)
        digests[i] ^= 1
        with pytest.raises(ugicm.StreamError, match="symbols do not match"):
            codec.decompress(replace(parsed, digests=tuple(digests)).pack())


@pytest.mark.parametrize("backbone", ["mlicpp", "bmshj2018"])
def test_one_rate_models_warn_once(backbone):
    codec = Codec(small_model(backbone))
    assert not codec.has_quality
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = codec.compress(make_image())
    with pytest.warns(UserWarning, match="one rate"):
        assert codec.compress(make_image(), 0.9) == data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.compress(make_image(), 0.9)
    assert codec.decompress(data).size == (100, 70)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("backbone", ["compact", "mlicpp"])
def test_global_torch_settings_have_no_effect(backbone, tmp_path, default_dtype):
    model = small_model(backbone)
    path = tmp_path / "model.safetensors"
    native.save_model(path, model)
    image = make_image(100, 70)

    def use() -> tuple:
        codec = ugicm.load(path)
        data = codec.compress(image, tile=64)
        return codec.fingerprint, data, *(np.asarray(x).tolist() for x in codec.decompress(data, ["human", "machine"]))

    extent_mask.cache_clear()
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
def test_entropy_coding_uses_full_float32(backbone):
    model = small_model(backbone)
    codec = Codec(model)
    seen = []
    codec.model.entropy_model.h_s.register_forward_hook(lambda *_: seen.append([s.get() for s in _switches()]))
    before = [s.get() for s in _switches()]
    codec.decompress(codec.compress(make_image()))
    assert seen == [[s.exact for s in _switches()]] * 2
    with full_float32(), full_float32():
        pass
    assert [s.get() for s in _switches()] == before


@pytest.mark.parametrize("backbone", ["compact", "mlicpp"])
def test_analysis_uses_full_float32(backbone):
    model, seen = small_model(backbone).prepare_for_coding(), []

    def look(*_) -> None:
        seen.append(([s.get() for s in _switches()], torch.is_autocast_enabled("cpu")))

    for part in (model.g_a, model.h_a):
        part.register_forward_pre_hook(look)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            encode(model, torch.rand(1, 3, 64, 64), torch.full((1,), 0.5))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [([s.exact for s in _switches()], False)] * 2


def test_load_restores_the_default_dtype(tmp_path, default_dtype):
    native.save_model(tmp_path / "model.safetensors", small_model())
    default_dtype(torch.float64)
    ugicm.load(tmp_path / "model.safetensors")
    assert torch.get_default_dtype() == torch.float64
    with pytest.raises(ugicm.CheckpointError):
        ugicm.load(tmp_path / "absent.safetensors")
    assert torch.get_default_dtype() == torch.float64


def test_codec_can_be_pickled():
    codec = Codec(small_model())
    data = pickle.loads(pickle.dumps(codec)).compress(make_image(), effort=1)
    with torch.inference_mode():
        copied = copy.deepcopy(codec)
    assert data == codec.compress(make_image(), effort=1) == copied.compress(make_image(), effort=1)


def test_checkpoints_round_trip_in_full_and_half_precision(tmp_path):
    model = small_model()
    model.entropy_model.build_tables()
    native.save_model(tmp_path / "full.safetensors", model, {"step": "7"})
    native.save_model(tmp_path / "half.safetensors", model, half=True)
    assert native.read_metadata(tmp_path / "full.safetensors")["step"] == "7"
    full = ugicm.load(tmp_path / "full.safetensors")
    data = full.compress(make_image())
    assert Codec(model).compress(make_image()) == data
    half = ugicm.load(tmp_path / "half.safetensors")
    assert half.decompress(half.compress(make_image())).size == (100, 70)
    assert half.fingerprint != full.fingerprint
    with pytest.raises(ValueError, match="after prepare_for_coding"):
        native.save_model(tmp_path / "late.safetensors", full.model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full.safetensors", "half.safetensors"]


def test_half_checkpoints_keep_priors_in_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    native.save_model(path, small_model(), half=True)
    kinds = {name: tensor.dtype for name, tensor in safetensors.torch.load_file(path).items()}
    wide = {name for name, kind in kinds.items() if kind == torch.float32}
    assert wide == {name for name in kinds if "bottleneck" in name or "scale_table" in name} and len(wide) < len(kinds)


@pytest.mark.skipif(os.name != "posix", reason="other permissions")
def test_checkpoints_are_readable_by_all_users(tmp_path):
    native.save_model(tmp_path / "model.safetensors", small_model())
    assert stat.S_IMODE(os.stat(tmp_path / "model.safetensors").st_mode) == 0o644


def test_load_rejects_invalid_checkpoints(tmp_path):
    path = tmp_path / "model.safetensors"
    model = small_model()
    model.entropy_model.build_tables()
    native.save_model(path, model)
    metadata = native.read_metadata(path)
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
        "CDF does not increase": lambda s: s["entropy_model.gaussian._quantized_cdf"].zero_(),
        "CDF lengths out of range": lambda s: s["entropy_model.gaussian._cdf_length"].fill_(10**6),
        "CDF tables must be integers": lambda s: s.update(
            {"entropy_model.gaussian._offset": s["entropy_model.gaussian._offset"].bool()}
        ),
        "CDF offsets beyond": lambda s: s["entropy_model.gaussian._offset"].fill_(-(2**31)),
        "no dense floating point tensors: g_a.stem.bias": lambda s: s.update(
            {"g_a.stem.bias": s["g_a.stem.bias"].to(torch.float8_e4m3fn)}
        ),
        "no dense floating point tensors: g_s.up.bias": lambda s: s.update({"g_s.up.bias": s["g_s.up.bias"].cfloat()}),
        "tabulated scales do not increase": lambda s: s["entropy_model.gaussian.scale_table"].mul_(1e5),
        "tabulated scales do not": lambda s: s["entropy_model.gaussian.scale_table"].neg_(),
        "quantiles of its factorized prior": lambda s: s["entropy_model.bottleneck.quantiles"].mul_(1e7),
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


@pytest.fixture(scope="module")
def tabulated():
    model = small_model()
    model.entropy_model.build_tables()
    return model


@pytest.mark.parametrize(("name", "change", "says"), [
    ("_quantized_cdf", lambda t: t[:, 0].fill_(1), "does not increase from 0 to 65536"),
    ("_quantized_cdf", lambda t: t.masked_fill_(t == 65536, 65535), "does not increase from 0 to 65536"),
    ("_quantized_cdf", lambda t: t[:, 2].copy_(t[:, 1]), "does not increase from 0 to 65536"),
    ("_quantized_cdf", lambda t: t[:-1], "CDF tables of"),
    ("_cdf_length", lambda t: t.fill_(2), "CDF lengths out of range"),
    ("_cdf_length", lambda t: t[:-1], "CDF tables of"),
    ("_offset", lambda t: t[:-1], "CDF tables of"),
    ("_offset", lambda t: t.fill_(2**16 + 1), "CDF offsets beyond"),
    ("_offset", lambda t: None, "some of its CDF tables are missing"),
])  # fmt: skip
@pytest.mark.parametrize("prior", ["gaussian", "bottleneck"])
def test_load_weights_rejects_invalid_cdf_tables(tabulated, prior, name, change, says):
    state = {k: v.clone() for k, v in native.model_state(tabulated).items()}
    key = f"entropy_model.{prior}.{name}"
    changed = change(state[key])
    if changed is None:
        del state[key]
    elif len(changed) < len(state[key]):
        state[key] = changed
    with pytest.raises(ugicm.CheckpointError, match=f"^here: entropy_model.{prior}: .*{says}"):
        native.load_weights(tabulated, state, "here")


def test_arguments_of_wrong_types_are_errors(codec):
    image = make_image()
    data = codec.compress(image)
    for name in ("tile", "effort"):
        with pytest.raises(TypeError, match=f"{name} is 64.0, must be an integer"):
            codec.compress(image, **{name: 64.0})
    with pytest.raises(TypeError, match="a bitstream must be bytes, a path or a file open for reading bytes, got int"):
        codec.decompress(5)
    with pytest.raises(ValueError, match="preference must be"):
        codec.decompress(data, 1 + 1e-9)
    for preference in (torch.tensor(0.5, requires_grad=True), torch.tensor(0.5, dtype=torch.bfloat16)):
        assert codec.decompress(data, preference).tobytes() == codec.decompress(data, 0.5).tobytes()
    with pytest.raises(ugicm.CheckpointError, match="File name too long"):
        ugicm.load("x" * 5000)


@pytest.mark.parametrize("read", [ugicm.load, state_dict.read_state_dict])
def test_paths_that_are_not_files_are_errors(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ugicm.CheckpointError, match="is a folder: name the file in it"):
        read(tmp_path)
    with pytest.raises(ugicm.CheckpointError, match="no such file"):
        read(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("quality", [0.2, 1.0])
def test_bfloat16_transforms_change_psnr_by_at_most_a_hundredth_of_a_decibel(quality):
    """And sizes by at most a thousandth."""
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim19.png") as path:
        photo = images.center_crop(images.open_rgb(path), 256)
    codec = ugicm.load(fast=False)
    data = codec.compress(photo, quality)
    exact = codec.decompress(data, ["human", "machine"])
    codec.model.transform_dtype = torch.bfloat16
    fast = codec.compress(photo, quality)
    assert fast != data
    assert len(fast) == pytest.approx(len(data), rel=1e-3, abs=4)
    for before, after in zip(exact, codec.decompress(fast, ["human", "machine"]), strict=True):
        assert before != after
        assert abs(psnr(photo, before) - psnr(photo, after)) <= 0.01


def test_only_blocks_and_the_machine_tail_run_in_bfloat16():
    codec, types = Codec(small_model()), {}
    exact = {f"g_a.{name}" for name in ("stem", "down", "head", "detail")}
    exact |= {f"g_s.{name}" for name in ("stem", "up", "head", "detail")}
    blocks = {f"{transform}.blocks_{stride}.0.expand" for transform in ("g_a", "g_s") for stride in (8, 16)}
    reduced = blocks | {"g_s.machine.blocks.0.expand", "g_s.machine.head"}
    for name in exact | reduced:
        codec.model.get_submodule(name).register_forward_hook(lambda *a, name=name: types.update({name: a[-1].dtype}))
    codec.model.transform_dtype = torch.bfloat16
    codec.decompress(codec.compress(make_image()), "machine")
    assert types == dict.fromkeys(exact, torch.float32) | dict.fromkeys(reduced, torch.bfloat16)


def test_machine_tail_is_skipped_for_human_preference():
    codec, seen = Codec(small_model()), []
    codec.model.g_s.machine.register_forward_hook(lambda *_: seen.append(1))
    data, nobody = codec.compress(make_image()), np.zeros((make_image().height, make_image().width))
    codec.decompress(data, ["human", 0.0, nobody])
    assert not seen
    codec.decompress(data, 0.1)
    assert seen


@pytest.mark.parametrize(("given", "expected"), [({}, "passive 2000"), ({"OMP_WAIT_POLICY": "active"}, "active None")])
def test_import_sets_how_threads_wait_unless_it_is_given(given, expected, run_python, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    done = run_python("-c", "import os, ugicm; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))")
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


FORKING = """
import multiprocessing, torch, ugicm
from PIL import Image
torch.set_num_threads(2)
codec = ugicm.load()
data = codec.compress(Image.effect_noise((64, 64), 50), 0.1)
expected = codec.decompress(data)
def child():
    assert codec.decompress(data).size == expected.size
    assert codec.decompress([data, data])[1].tobytes() == codec.decompress(data).tobytes()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
process.kill()
print(process.exitcode, torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_decodes(run_python):
    done = run_python("-c", FORKING)
    assert (done.returncode, done.stdout) == (0, "0 2\n"), done.stderr


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_batches_give_the_results_of_single_calls(codec, two_threads):
    pictures = [
        make_image(*size, seed) for seed, size in enumerate([(64, 64), (100, 70), (64, 64), (1, 1), (300, 200)])
    ]
    data = codec.compress(pictures, 0.3, tile=128)
    assert data == [codec.compress(image, 0.3, tile=128) for image in pictures]
    for preference in (0.5, ["human", "machine"]):
        assert codec.decompress(data, preference) == [codec.decompress(one, preference) for one in data]
    assert codec.compress([]) == codec.decompress([]) == []
    assert torch.get_num_threads() == 2
    with pytest.raises(ugicm.StreamError):
        codec.decompress([*data, b"UGI"])


def test_images_are_accepted_in_every_form(codec, tmp_path):
    image = make_image(100, 70)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    path = tmp_path / "a.png"
    data = codec.compress(image)
    for form in (path, str(path), path.read_bytes(), path.open("rb"), array, array.transpose(2, 0, 1), tensor):
        assert codec.compress(form) == data
    for batch in (tensor[None], array[None], [array], (image,)):
        assert codec.compress(batch) == [data]
    (tmp_path / "a.ugic").write_bytes(data)
    for form in (data, bytearray(data), tmp_path / "a.ugic", (tmp_path / "a.ugic").open("rb")):
        assert codec.decompress(form) == codec.decompress(data)


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8)]
)
def test_arrays_of_other_shapes_and_types_are_errors(codec, bad):
    with pytest.raises(ValueError, match=r"the image is a \w+ (array|tensor) of shape \[8, 8.*must be uint8 \["):
        codec.compress(bad)


def test_decoded_images_come_in_the_form_that_is_asked_for(codec):
    data = codec.compress(make_image(100, 70))
    levels = np.asarray(codec.decompress(data, 1.0))
    array = codec.decompress(data, 1.0, output="numpy")
    tensor = codec.decompress(data, 1.0, output="tensor")
    assert (array.dtype, array.shape, tensor.dtype, tensor.shape) == (np.uint8, (70, 100, 3), torch.uint8, (3, 70, 100))
    assert np.array_equal(array, levels) and np.array_equal(tensor.permute(1, 2, 0), levels)
    assert [x.shape for x in codec.decompress(data, [0, 1], region=(0, 0, 5, 7), output="tensor")] == [(3, 7, 5)] * 2
    with pytest.raises(ValueError, match="output 'jpeg' not found; available: pil, numpy, tensor"):
        codec.decompress(data, output="jpeg")
