"""Hostile bitstreams and checkpoints, interrupted commands, threads, and large images.

Corrupt files, rejected released checkpoints and killed compress runs are also tested in test_bitstream, test_released,
test_codec and test_cli.
"""

import dataclasses
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import small_model

import ugicm
from scripts.processes import memory, reset_peak
from scripts.stress import concurrency, fuzzing, large_images
from scripts.stress.mutants import EXTENDED_MUTATIONS, Mutant, forged, mutants, valid_bitstreams, with_checksum
from ugicm import bitstream
from ugicm.checkpoints import state_dict
from ugicm.checkpoints.native import load_weights, model_state, save_model
from ugicm.codec import Codec
from ugicm.commands import main as cli
from ugicm.entropy import ans, coders
from ugicm.entropy.guard import GuardReader
from ugicm.entropy.tables import TABLES
from ugicm.errors import UgicmError
from ugicm.training import state as run_state

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def codec():
    return Codec(small_model())


@pytest.fixture(scope="module")
def corpus(codec):
    return valid_bitstreams(codec)


# Mutated bitstreams


@pytest.mark.parametrize("backbone", ["compact", "bmshj2018"])
def test_mutants_end_in_stream_error_or_image(backbone, monkeypatch):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 2**16)
    codec = Codec(small_model(backbone))
    outcomes = set()

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutants(valid_bitstreams(codec), EXTENDED_MUTATIONS))
    def run(mutant):
        outcome, details, _ = fuzzing.decode(codec, mutant)
        assert not outcome.startswith("finding"), details
        outcomes.add(outcome)

    run()
    assert {"image", "refused: checksum", "refused: corrupt", "refused: truncated"} <= outcomes


def test_forged_bitstreams_reach_the_synthesis(codec, corpus):
    parsed = bitstream.parse(corpus[0])
    for string in (parsed.strings[0][:50], parsed.strings[0] + b"more"):
        data = dataclasses.replace(parsed, strings=(string,)).pack()
        assert fuzzing.decode(codec, Mutant("kind", data, False, 0.0))[0] in ("refused: digest", "refused: corrupt")
        assert fuzzing.decode(codec, Mutant("kind", data, True, 0.0))[0] == "image"


@pytest.mark.parametrize("backbone", ["compact", "mlicpp"])
def test_forging_changes_no_valid_bitstream(backbone):
    codec = Codec(small_model(backbone))
    for data in valid_bitstreams(codec)[:4]:
        assert forged(codec, data) == data


def test_decode_reports_findings(codec, corpus, monkeypatch):
    mutant = Mutant("kind", corpus[0], False, 0.0)
    assert fuzzing.decode(codec, mutant) == ("image", "", corpus[0])
    monkeypatch.setattr(codec, "decompress", lambda data, preference: Image.new("RGB", (5, 5)))
    assert fuzzing.decode(codec, mutant)[0] == "finding: wrong size"
    monkeypatch.setattr(codec, "decompress", lambda data, preference: 1 / 0)
    assert fuzzing.decode(codec, mutant)[0] == "finding: ZeroDivisionError"

    class Panic(BaseException):
        """Like that of a library in Rust."""

    monkeypatch.setattr(codec, "decompress", mock.Mock(side_effect=Panic))
    assert fuzzing.decode(codec, mutant)[0] == "finding: Panic"


@linux
@pytest.mark.parametrize(("limit", "outcome"), [("SECONDS", "finding: slow"), ("MEMORY", "finding: memory")])
def test_exceeding_a_limit_is_a_finding(codec, corpus, monkeypatch, limit, outcome):
    mutant = Mutant("kind", corpus[0], False, 0.0)
    assert fuzzing.observe(codec, mutant)[0].outcome == "image"
    monkeypatch.setattr(fuzzing, limit, (-1 if limit == "SECONDS" else -(2**30), 0))
    assert fuzzing.observe(codec, mutant)[0].outcome == outcome


def test_death_of_a_process_is_a_finding(checkpoint, tmp_path, monkeypatch):
    def in_fresh_process(function, checkpoint, corpus, seed, count, folder):
        if seed == 1:
            (folder / "1-current.ugic").write_bytes(b"mutant")
            raise UgicmError("the process running run_block died")
        return [fuzzing.Record("kind", "image")] * count

    monkeypatch.setattr(fuzzing, "in_fresh_process", in_fresh_process)
    monkeypatch.setattr(fuzzing, "BLOCK", 5)
    records = fuzzing.run(str(checkpoint), 12, 0, 2, tmp_path / "findings")
    summary = fuzzing.summary(records)
    assert summary["streams"] == 5 + 1 + 2 and summary["outcomes"]["image"] == 7
    assert [finding["outcome"] for finding in summary["findings"]] == ["finding: process died"]
    (saved,) = (tmp_path / "findings").iterdir()
    assert saved.read_bytes() == b"mutant"


def test_process_that_cannot_start_is_no_finding(checkpoint, tmp_path, monkeypatch):
    def in_fresh_process(*_):
        raise UgicmError("no memory")

    monkeypatch.setattr(fuzzing, "in_fresh_process", in_fresh_process)
    with pytest.raises(UgicmError, match="no memory"):
        fuzzing.run(str(checkpoint), 1, 0, 1, tmp_path)


def test_fuzzing_summary_counts_outcomes():
    outcomes = ["image", "image", "refused: checksum"]
    records = [fuzzing.Record("kind", outcome, 0.1 * i, 10 - i, 4096) for i, outcome in enumerate(outcomes)]
    summary = fuzzing.summary(records)
    assert summary["outcomes"] == {"image": 2, "refused: checksum": 1} and summary["streams"] == 3
    assert summary["by_kind"] == {"kind": summary["outcomes"]} and summary["findings"] == []
    assert (summary["slowest"]["seconds"], summary["most_memory"]["memory_bytes"]) == (0.2, 10)


@linux
def test_fuzzing_command(checkpoint, tmp_path, capsys):
    output, findings = tmp_path / "fuzz.json", tmp_path / "findings"
    options = ["-c", str(checkpoint), "--examples", "60", "-o", str(output), "--findings", str(findings)]
    assert fuzzing.main(options) == 0
    report = json.loads(output.read_text())
    assert (report["streams"], report["findings"]) == (60, [])
    assert "60 bitstreams, 0 findings" in capsys.readouterr().out
    assert list(findings.iterdir()) == []


# Hostile strings


@linux
@pytest.mark.parametrize("backbone", ["compact", "bmshj2018"])
@pytest.mark.parametrize("string", [b"", b"\xff" * 2**24, b"\x01" * 2**24, b"\xff\xff\xff\xff\x7f" + b"\x02" * 2**24])
def test_long_strings_of_a_small_image_are_cheap(backbone, string):
    """The last one begins with the longest guard list."""
    codec = Codec(small_model(backbone))
    parsed = bitstream.parse(codec.compress(Image.new("RGB", (64, 64))))
    data = dataclasses.replace(parsed, strings=(string,)).pack()
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    with pytest.raises(ugicm.StreamError):
        codec.decompress(data)
    assert time.process_time() - start < 1
    assert memory("VmHWM") - before < 8 * len(string) + 2**24


@pytest.mark.parametrize("backbone", ["compact", "bmshj2018", "mlicpp"])
def test_largest_symbols_decode_to_an_image(backbone, monkeypatch):
    monkeypatch.setattr(coders, "USABLE_LIMIT", 2**27)  # beyond which an escape takes more than 4 bytes
    codec = Codec(small_model(backbone))
    y, z = (torch.full(shape, 2.0**26) for shape in ((1, codec.config.M, 4, 4), (1, codec.config.N, 1, 1)))
    strings, digests = codec.model.entropy_encode(y, -z)
    for preference in (0.0, 1.0):
        fields = (64, 64, codec.model.fingerprint, 0.5, 0, tuple(digests), tuple(strings))
        assert codec.decompress(bitstream.Bitstream(*fields).pack(), preference).size == (64, 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38])
def test_latents_that_are_not_finite_give_an_image(codec, corpus, value):
    """A hostile checkpoint can contain networks whose means overflow."""
    parsed = bitstream.parse(corpus[0])
    y_hat = torch.full_like(codec.entropy_decode(parsed), value)
    for image in codec.synthesize(parsed, y_hat, [torch.tensor([0.0]), torch.tensor([1.0])]):
        assert image.size == (parsed.width, parsed.height) and len(image.tobytes()) == 3 * parsed.width * parsed.height


@pytest.mark.parametrize("symbols, steps", [(4, [3, 0]), (20, [20]), (20, [2, 18]), (0, [0])])
def test_guard_list_must_point_to_increasing_symbols(symbols, steps):
    packed = b"".join(map(bitstream.varint, [len(steps), *(2 * step for step in steps)]))
    with pytest.raises(ugicm.StreamError, match=f"entry {len(steps) - 1} of its guard list does not point to a new"):
        GuardReader(packed, symbols)


# Headers with wrong sizes


@linux
@pytest.mark.parametrize("size", [(2**31, 2**31), (2**32 - 1, 1), (2**26, 1), (1, 2**26), (2**16, 2**16)])
@pytest.mark.parametrize("tile", [0, 64])
def test_rejecting_a_huge_declared_size_is_cheap(codec, size, tile):
    body = b"UGI\x04" + codec.model.fingerprint + bitstream.varint(size[0]) + bitstream.varint(size[1])
    data = with_checksum(body + b"\x00\x80" + bytes([tile // 64]) + bytes(300))
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    with pytest.raises(ugicm.StreamError, match="more than the limit of"):
        codec.decompress(data)
    assert time.process_time() - start < 0.2
    assert memory("VmHWM") - before < 8 * 2**20


def test_tile_table_longer_than_the_file_is_rejected(codec):
    body = b"UGI\x04" + codec.model.fingerprint + bitstream.varint(8192) + bitstream.varint(8192)
    with pytest.raises(ugicm.StreamError, match="end inside the header"):
        bitstream.parse(with_checksum(body + b"\x00\x80\x01" + bytes(16384 * 3 - 6)))


def test_max_pixels_limits_decoding(codec, monkeypatch):
    data = codec.compress(Image.new("RGB", (100, 70)))  # 128x128 as coded
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 128 * 128 - 1)
    with pytest.raises(ugicm.StreamError, match="100x70 pixels, 128x128 as coded: more than the limit of 16383"):
        codec.decompress(data)
    for limit in (128 * 128, None):
        monkeypatch.setattr(bitstream, "MAX_PIXELS", limit)
        assert codec.decompress(data).size == (100, 70)
    huge = bitstream.Bitstream(2**20, 2**20, b"abc", 1.0, 0, (0,), (b"",))
    assert bitstream.parse(huge.pack()) == huge


def test_max_pixels_limits_encoding(codec, monkeypatch):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 128 * 128 - 1)
    with pytest.raises(ValueError, match="the image has 100x70 pixels, 128x128 as coded: more than the limit"):
        codec.compress(Image.new("RGB", (100, 70)))


def test_max_pixels_option_of_the_commands(codec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 64 * 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow refuses twice as many
    image, model = tmp_path / "photo.png", tmp_path / "model.safetensors"
    Image.new("RGB", (100, 70)).save(image)
    save_model(model, small_model())
    run = ["compress", str(image), "-c", str(model)]
    assert cli.main(run) == 1 and "bomb" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
        assert cli.main([*run, "--max-pixels", "10000"]) == 1
    assert "more than the limit of 10000; to accept it, use --max-pixels" in capsys.readouterr().err
    assert cli.main([*run, "--max-pixels", "16384"]) == 0
    made = str(tmp_path / "photo.ugic")
    for command in (["info", made], ["decompress", made, "--overwrite", "-c", str(model)]):
        assert cli.main([*command, "--max-pixels", "4096"]) == 1
        assert "100x70 pixels" in capsys.readouterr().err
        assert cli.main([*command, "--max-pixels", "0"]) == 0
    with pytest.raises(SystemExit, match="2"):
        cli.main(["info", made, "--max-pixels", "-1"])


# Checkpoints


@linux
@pytest.mark.parametrize("field", ["N", "hyper_width", "quality_width", "width_8", "depth_8", "machine_depth"])
@pytest.mark.parametrize("value", [128, 16384, 10**9])
def test_huge_configuration_is_rejected_without_allocating(tmp_path, field, value):
    model = small_model()
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    config = dataclasses.asdict(model.config) | {field: value}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"format": "ugicm", "config": json.dumps(config)})
    reset_peak()
    before = memory("VmRSS")
    says = "missing tensors|unexpected|wrong shapes|must be|cannot be built|cannot hold"
    with pytest.raises(ugicm.CheckpointError, match=says):
        ugicm.load(path)
    assert memory("VmHWM") - before < 100 * 2**20


def load_changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Codec:
    """Load a small checkpoint whose tensors were changed in place by ``change``."""
    model = small_model()
    model.entropy_model.build_tables()
    save_model(path, model)
    state, described = safetensors.torch.load_file(path), dataclasses.asdict(model.config) | config
    change(state)
    safetensors.torch.save_file(state, path, {"format": "ugicm", "config": json.dumps(described)})
    return ugicm.load(path)


@pytest.mark.parametrize("layer", ["h_s.conv1", "indexes.channel.1", "indexes.networks.0.1"])
@pytest.mark.parametrize(("leaf", "value", "says"), [
    ("weight", float("nan"), "not finite"),
    ("weight", 1e300, "not finite"),
    ("bias", 1e300, "not finite"),
    ("bias", 3e38, "integer layer of the entropy model are too large"),
    ("bias", 2.0**20, "integer layer of the entropy model are too large"),
])  # fmt: skip
def test_integer_layers_with_inexact_sums_are_rejected(tmp_path, layer, leaf, value, says):
    def change(state):
        name = f"entropy_model.{layer}.{leaf}"
        state[name] = state[name].double() if value == 1e300 else state[name]
        state[name].view(-1)[0] = value

    with pytest.raises(ugicm.CheckpointError, match=says):
        load_changed(tmp_path / "model.safetensors", change)


def test_huge_weights_of_integer_layers_are_clamped(tmp_path):
    def change(state):
        for name, tensor in state.items():
            if name.startswith(("entropy_model.h_s", "entropy_model.indexes")) and name.endswith("weight"):
                tensor.fill_(3e38 if "networks" in name else -3e38)

    codec = load_changed(tmp_path / "model.safetensors", change)
    assert codec.decompress(codec.compress(Image.effect_noise((64, 64), 60))).size == (64, 64)


def test_mutated_tables_are_rejected_or_usable():
    """The library that codes symbols gets no invalid distribution, which it might answer by a panic."""
    model = small_model()
    model.entropy_model.build_tables()
    state = {name: tensor.clone() for name, tensor in model_state(model).items()}
    entries = st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3) | st.sampled_from([2**16, 2**16 - 1])
    loaded = []

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.sampled_from([model.entropy_model.gaussian, model.entropy_model.bottleneck]), st.sampled_from(TABLES),
           st.integers(0, 10**6), entries, st.booleans())  # fmt: skip
    def run(prior, name, position, entry, difference):
        key = next(f"entropy_model.{key}.{name}" for key in ("gaussian", "bottleneck")
                   if prior is model.entropy_model.get_submodule(key))  # fmt: skip
        table = state[key].clone().long()
        table.view(-1)[position % table.numel()] = entry + difference * table.view(-1)[position % table.numel()]
        try:
            load_weights(model, {**state, key: table}, "mutated")
        except ugicm.CheckpointError:
            return
        loaded.append(key)
        tables = prior.coding_tables()
        rows = np.arange(len(tables.sizes))
        for symbols in (tables.offsets, tables.offsets + tables.sizes - 1, np.full_like(tables.offsets, 2**22)):
            encoder = ans.SymbolEncoder()
            encoder.encode(symbols, rows, tables)
            assert np.array_equal(ans.SymbolDecoder(encoder.flush()).decode(rows, tables), symbols)

    run()
    assert 20 < len(loaded) < 180


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_named_safetensors_is_not_executed(tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(ugicm.CheckpointError, match="evil.safetensors: cannot be read as a safetensors checkpoint"):
        ugicm.load(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "executed").exists()  # loading it does


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (run_state.STATE_FILE, lambda path: run_state.read_run_state(path.parent)),
        ("weights.pth", state_dict.read_state_dict),
    ],
    ids=["run state", "third-party weights"],
)
def test_pickles_read_by_training_are_not_executed(tmp_path, name, read):
    torch.save({"x": Malicious(tmp_path / "executed")}, tmp_path / name)
    with pytest.raises(ugicm.CheckpointError):
        read(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [1e9, float("inf"), float("nan")])
def test_latents_out_of_range_are_rejected(value):
    """No escape reaches that far."""
    codec = Codec(small_model())
    last = [p for n, p in codec.model.g_a.named_parameters() if n == "head.bias"][0]
    last.data.fill_(value)
    with pytest.raises(ugicm.CheckpointError, match="latents are not finite, or too large"):
        codec.compress(Image.new("RGB", (64, 64)))


# Failing writes, killed commands, threads


@linux
def test_write_that_exceeds_the_file_size_limit(run_python, checkpoint, photos, tmp_path):
    """The system stops a write in the middle of a file."""
    program = (
        "import resource, sys; from ugicm.commands import main as cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    options = ("compress", photos, tmp_path / "streams", "-c", checkpoint)
    done = run_python("-c", program, *options)
    assert done.returncode == 1
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    assert [p for p in (tmp_path / "streams").rglob("*") if p.is_file()] == []
    assert run_python("-m", "ugicm", *options).stdout.splitlines()[-1] == "3 done; left out: 1 .csv"


def test_killed_decompress_is_completed_by_the_next_run(run_python, checkpoint, tmp_path, make_image):
    streams, images = tmp_path / "streams", tmp_path / "images"
    streams.mkdir()
    data = ugicm.load(checkpoint).compress(make_image(200, 200))
    for i in range(40):
        (streams / f"{i:02}.ugic").write_bytes(data)
    command = [sys.executable, "-m", "ugicm", "decompress", streams, images, "-c", checkpoint]
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root})
    while process.poll() is None and len(list(images.glob("*.png"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(images.glob("*.png"))
    assert len(finished) >= 3
    for path in finished:
        assert Image.open(path).convert("RGB").size == (200, 200)
    done = run_python("-m", "ugicm", "decompress", streams, images, "-c", checkpoint)
    assert done.returncode == 0 and f"{40 - len(finished)} done" in done.stdout
    assert sorted(p.name for p in images.iterdir()) == [f"{i:02}.png" for i in range(40)]
    assert len({path.read_bytes() for path in images.iterdir()}) == 1


def test_threads_get_the_results_of_one_thread(codec, make_image):
    """Concurrent calls with and without tiles, for several qualities and preferences."""
    jobs = [(make_image(70 + 9 * i, 140, i), 0.1 + 0.05 * i, 64 * (i % 2), i % 3 / 2) for i in range(12)]

    def work(job):
        image, quality, tile, preference = job
        data = codec.compress(image, quality, tile)
        return data, codec.decompress(data, preference).tobytes()

    alone = list(map(work, jobs))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, jobs * 3)) == alone * 3


def test_concurrency_check_counts_differences(photos, monkeypatch):
    codec = Codec(small_model())
    sources = sorted(photos.rglob("*.png"))[:2]
    jobs = [(path, quality, 0.5) for path in sources for quality in (0.2, 0.8)]
    same = concurrency.check(codec, jobs, threads=3, repeats=2, side=64)
    assert same == {"threads": 3, "calls": 4 * len(sources), "streams_that_differ": 0, "images_that_differ": 0}
    calls = itertools.count()
    compress = codec.compress
    monkeypatch.setattr(codec, "compress", lambda image, quality: compress(image, 0.3 + 0.1 * (next(calls) % 2)))
    assert concurrency.check(codec, jobs[:1], 2, 4, 64)["streams_that_differ"] == 2


# Large images


def test_border_band_and_seam():
    band = large_images.border_band(300, 200, 128)
    columns = [*range(120, 136), *range(248, 264)]
    assert np.flatnonzero(band[0]).tolist() == columns
    assert np.flatnonzero(band[:, 0]).tolist() == list(range(120, 136))
    assert not large_images.border_band(128, 128, 128).any()
    original = Image.new("RGB", (300, 200))
    seen = np.zeros((200, 300, 3), np.uint8)
    seen[band] = 10
    seen[~band] = 5
    measured = large_images.seam(original, Image.fromarray(seen), 128)
    assert measured == pytest.approx({"band_psnr": 28.1308, "rest_psnr": 34.1514}, abs=1e-3)


def test_mosaic_is_deterministic(photos):
    sources = sorted(photos.rglob("*.png")) + sorted(photos.rglob("*.bmp"))
    first, second = (large_images.mosaic(500, 300, sources) for _ in range(2))
    assert first.size == (500, 300) and first.tobytes() == second.tobytes()
    assert first.tobytes() != large_images.mosaic(500, 300, sources, seed=1).tobytes()


@linux
def test_large_images_check(checkpoint, photos, monkeypatch):
    fresh, calls = large_images.in_fresh_process, []

    def run(function, *arguments):
        """Run the first call in a fresh process, the others in this one, to save time."""
        calls.append(function.__name__)
        return fresh(function, *arguments) if len(calls) == 1 else function(*arguments)

    monkeypatch.setattr(large_images, "in_fresh_process", run)
    monkeypatch.setattr(large_images, "RATE_LIMIT", 1e-4)  # which small tiles exceed
    report = large_images.check(str(checkpoint), sorted(photos.rglob("*.png")), (512, 384), (256, 256), tile=128)
    assert calls == ["compress", *4 * ["decompress"], *2 * ["compress", "decompress"]]
    assert report["compress"]["memory_mib"] > 0 and report["compress"]["processor_seconds"] > 0
    assert [r["region"][2:] for r in report["regions"]] == [[256, 192], [128, 96], [64, 48]]
    assert all(r["area_share"] <= r["tiles_share"] <= 1 for r in report["regions"])
    assert report["one_piece"]["tiles"]["bpp"] > report["one_piece"]["one piece"]["bpp"] > 0
    needed, *_, bits = report["checks"]
    assert needed["what"].startswith("memory") and needed["holds"]
    pieces = report["one_piece"]
    assert bits["value"] == abs(pieces["tiles"]["bpp"] / pieces["one piece"]["bpp"] - 1)
    assert not bits["holds"]
