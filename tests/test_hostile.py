"""Hostile input and hostile circumstances, beyond what the tests of each part already cover.

Damaged files, refused checkpoints of others and killed compress runs are in test_stream, test_released, test_codec
and test_cli.
"""

import dataclasses
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from small_models import small_model

import ugicm
from scripts.benchmark.memory import memory, reset_peak
from scripts.stress import concurrency, fuzzing, large_images
from ugicm import bitstream
from ugicm.checkpoints import state_dict
from ugicm.checkpoints.native import save_model
from ugicm.codec import Codec
from ugicm.commands import main as cli
from ugicm.entropy import rans
from ugicm.training import state as run_state

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def codec():
    return Codec(small_model())


@pytest.fixture(scope="module")
def known(codec):
    return fuzzing.corpus(codec)


# Mutated streams


@pytest.mark.parametrize("backbone", ["compact", "bmshj2018"])
def test_mutants_end_in_stream_error_or_a_image(backbone, monkeypatch):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 2**16)
    codec = Codec(small_model(backbone))
    known, outcomes = fuzzing.corpus(codec), set()
    for number in range(250):
        subject = fuzzing.mutant(known, 3, number)
        data = subject.data
        if subject.repaired:  # forge the digests of all that can be: what is garbage must reach the synthesis
            try:
                data = fuzzing.forged(codec, data)
            except ugicm.StreamError:
                pass
        outcome, details = fuzzing.attempt(codec, data)
        assert not outcome.startswith("finding"), (number, subject.kind, outcome, details)
        outcomes.add(outcome)
    assert {"image", "refused: checksum", "refused: damaged", "refused: truncated"} <= outcomes


def test_a_mutant_follows_from_its_number(known):
    assert all(fuzzing.mutant(known, 1, i) == fuzzing.mutant(known, 1, i) for i in range(50))
    assert len({fuzzing.mutant(known, seed, 7).data for seed in range(20)}) > 10
    assert {fuzzing.mutant(known, 1, i).kind for i in range(300)} == set(fuzzing.MUTATIONS)


def test_an_outcome_that_should_not_be_is_a_finding(codec, known, monkeypatch):
    assert fuzzing.attempt(codec, known[0]) == ("image", "")
    monkeypatch.setattr(codec, "decompress", lambda data, preference: Image.new("RGB", (5, 5)))
    assert fuzzing.attempt(codec, known[0])[0] == "finding: wrong image"
    monkeypatch.setattr(codec, "decompress", lambda data, preference: 1 / 0)
    assert fuzzing.attempt(codec, known[0])[0] == "finding: ZeroDivisionError"


@pytest.mark.parametrize("number", [0, 2])
def test_the_death_of_the_decoding_process_is_a_finding(number, known, tmp_path, monkeypatch):
    """A stand-in for the decoder dies of SIGSEGV at its first task's stream ``number``, and decodes all of the rest."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!{sys.executable}\n" + textwrap.dedent(f"""
        import json, os, signal, sys
        task = json.loads(sys.stdin.read())
        print('["ready"]')
        for i in range(task["first"], task["last"]):
            if i == {number}:
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGSEGV)
            print(json.dumps([i, "kind", "image", "", 0.5, i, 4096]))
    """))
    stand_in.chmod(0o755)
    monkeypatch.setattr(fuzzing.sys, "executable", str(stand_in))
    tally, stopped = fuzzing.run(None, known, 0, 5, tmp_path / "findings", block=5)
    assert (tally.done, stopped) == (5, "")
    (finding,) = tally.findings
    assert finding["number"] == number and finding["outcome"] == "finding: crash, SIGSEGV"
    (saved,) = (tmp_path / "findings").iterdir()
    assert saved.read_bytes() == fuzzing.mutant(known, 0, number).data


@linux
@pytest.mark.parametrize(("grant", "outcome"), [("SECONDS", "finding: slow"), ("MEMORY", "finding: memory")])
def test_what_takes_too_much_is_a_finding(codec, known, monkeypatch, grant, outcome):
    subject = fuzzing.Mutant("kind", True, False, known[0])
    assert fuzzing._observe(codec, subject, 0)[2] == "image"
    monkeypatch.setattr(fuzzing, grant, (-1 if grant == "SECONDS" else -(2**30), 0))
    assert fuzzing._observe(codec, subject, 0)[2] == outcome


def test_a_silent_decoding_process_is_a_hang(known, tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\ncat > /dev/null\necho '[\"ready\"]'\nexec sleep 60\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(fuzzing.sys, "executable", str(stand_in))
    monkeypatch.setattr(fuzzing, "HANG", 0.2)
    tally, _ = fuzzing.run(None, known, 0, 1, tmp_path / "findings", block=1)
    assert [finding["outcome"] for finding in tally.findings] == ["finding: hang"]


def test_a_tally_counts():
    tally = fuzzing.Tally()
    for number, outcome in enumerate(["image", "image", "refused: checksum"]):
        tally.add([number, "kind", outcome, "", 0.1 * number, 10 - number, 4096])
    assert tally.as_json()["outcomes"] == {"image": 2, "refused: checksum": 1} and tally.done == 3
    assert tally.slowest["number"] == 2 and tally.largest["number"] == 0


@linux
def test_claims_are_weighed(codec):
    empty, full = (fuzzing.claim(codec, 128, full) for full in (False, True))
    assert empty["outcome"] == full["outcome"] == "image"
    assert empty["bytes"] < 40 < full["bytes"]


@linux
def test_a_run_as_a_process(checkpoint, run_python, tmp_path):
    script, output = Path(__file__).resolve().parents[1] / "scripts" / "stress" / "fuzz_streams.py", tmp_path / "fuzz.json"
    options = ("-c", checkpoint, "--count", 60, "--claims", "-o", output)
    done = run_python(script, *options, "--findings", tmp_path / "findings")
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert (report["streams"], report["findings"], report["stopped"]) == (60, [], "")
    assert report["environment"]["command"].endswith(f"-o {output} --findings {tmp_path / 'findings'}")
    assert not (tmp_path / "findings").exists()


# Strings that make the entropy decoder read on


def test_escapes_do_not_read_beyond_the_string(checkpoint, run_python):
    """An escape's length is in the string's hand: this read megabytes of foreign memory, and crashed."""
    program = textwrap.dedent(f"""
        import ugicm
        from ugicm.entropy import rans
        from ugicm import bitstream
        codec = ugicm.load({str(checkpoint)!r})
        longest = rans.LONGEST * 64 * (16 * codec.config.M + codec.config.N)
        for size in (300, 20000, longest):
            string = b"\\xff\\xff\\xff\\x7f" * 2 + b"\\xff" * (size - 8)  # begins with a state that writers may leave
            forged = bitstream.Stream(512, 512, codec.model.fingerprint, 0.5, 0, (0,), (string,)).pack()
            try:
                codec.decompress(forged)
            except ugicm.StreamError as error:
                print(error)
    """)
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == 3 * ["damaged stream: its symbols do not match their digest"]


@pytest.mark.parametrize("size", [300, 4000])
def test_as_many_zeros_follow_a_string_as_it_can_claim(codec, size, monkeypatch):
    given = []

    class Decoder:
        def set_stream(self, string):
            given.append(string)

    monkeypatch.setattr(rans, "RansDecoder", Decoder)
    string = b"\x7f" * size
    rans.RansDecoderCoder(codec.model.parser, [string], (1, 1), symbols=528)
    assert given[0].startswith(string) and not any(given[0][size:])
    assert len(given[0]) >= 16 * size + 5 * 528 + 4 * 256


@pytest.mark.parametrize("escapes", [1, 6553, 60000, 65530, 65535])
def test_what_follows_a_string_claims_less_than_there_is_room_for(escapes):
    """The decoder's arithmetic once it reads zeros only, with tables in which so many of 65536 are escapes."""
    low, symbols, words = 2**31, 3000, 0
    state = random.Random(escapes).randrange(low, 2**63)

    def renormalize():
        nonlocal state, words
        if state < low:
            state, words = state << 32, words + 1

    def four_bits() -> int:
        nonlocal state
        value, state = state & 15, state >> 4
        renormalize()
        return value

    for _ in range(symbols):
        place, plain = state & 0xFFFF, 65536 - escapes
        start, share = (plain, escapes) if place >= plain else (0, plain)
        state = share * (state >> 16) + place - start
        renormalize()
        if place >= plain:
            groups = last = four_bits()
            while last == 15:
                last = four_bits()
                groups += last
            for _ in range(groups):
                four_bits()
    assert 4 * words <= rans.CLAIM * symbols * 0.7


@pytest.mark.parametrize("start", [bytes(8), b"\xff" * 8, b"\x01" * 3, b""], ids=["zero", "large", "short", "empty"])
def test_a_string_that_begins_as_no_writers_does_is_refused(codec, start):
    """In the state zero every symbol would take a word, with no end."""
    parsed = bitstream.parse(codec.compress(Image.new("RGB", (64, 64))))
    with pytest.raises(ugicm.StreamError, match="begins as no writer's does"):
        codec.decompress(dataclasses.replace(parsed, strings=(start + bytes(20 * (len(start) == 8)),)).pack())


def test_a_string_longer_than_any_writer_makes_is_refused(codec):
    parsed = bitstream.parse(codec.compress(Image.new("RGB", (64, 64))))
    with pytest.raises(ugicm.StreamError, match="a string of 1000000 bytes for"):
        codec.decompress(dataclasses.replace(parsed, strings=(bytes(10**6),)).pack())


def test_a_writer_never_reaches_that_length(codec):
    """The worst of symbols: every one an escape."""
    parser, count = codec.model.parser, 528
    tables = rans.CodingTables.of(parser.gaussian)
    encoder = rans.BufferedRansEncoder()
    symbols = [rans.SYMBOL_LIMIT - 1] * count
    encoder.encode_with_indexes(symbols, [0] * count, tables.cdf, tables.length, tables.offset)
    assert 4 * count < len(encoder.flush()) <= rans.LONGEST * count


# Headers that lie


@linux
@pytest.mark.parametrize("size", [(2**31, 2**31), (2**32 - 1, 1), (2**26, 1), (1, 2**26), (2**16, 2**16)])
@pytest.mark.parametrize("tile", [0, 64])
def test_a_claim_of_a_huge_image_costs_nothing(codec, size, tile):
    body = b"UGI\x01" + codec.model.fingerprint + bitstream.varint(size[0]) + bitstream.varint(size[1])
    data = fuzzing.with_checksum(body + b"\x00\x80" + bytes([tile // 64]) + bytes(300))
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    with pytest.raises(ugicm.StreamError, match="more than the limit of"):
        codec.decompress(data)
    assert time.process_time() - start < 0.2
    assert memory("VmHWM") - before < 8 * 2**20


def test_a_table_longer_than_the_file_is_not_believed(codec):
    body = b"UGI\x01" + codec.model.fingerprint + bitstream.varint(8192) + bitstream.varint(8192)
    with pytest.raises(ugicm.StreamError, match="end inside the header"):
        bitstream.parse(fuzzing.with_checksum(body + b"\x00\x80\x01" + bytes(16384 * 3 - 5)))


def test_the_limit_on_pixels_is_the_users(codec, monkeypatch):
    data = codec.compress(Image.new("RGB", (100, 70)))  # 128x128 as coded
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 128 * 128 - 1)
    with pytest.raises(ugicm.StreamError, match="100x70 pixels, 128x128 as coded: more than the limit of 16383"):
        codec.decompress(data)
    for limit in (128 * 128, None):
        monkeypatch.setattr(bitstream, "MAX_PIXELS", limit)
        assert codec.decompress(data).size == (100, 70)
    huge = bitstream.Stream(2**20, 2**20, b"abc", 1.0, 0, (0,), (b"",))
    assert bitstream.parse(huge.pack()) == huge


def test_nothing_is_written_that_readers_would_refuse(codec, monkeypatch):
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 128 * 128 - 1)
    with pytest.raises(ValueError, match="the image has 100x70 pixels, 128x128 as coded: more than the limit"):
        codec.compress(Image.new("RGB", (100, 70)))


def test_the_limit_on_pixels_is_an_option_of_the_commands(codec, tmp_path, monkeypatch, capsys):
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
    assert "more than the limit of 10000; if this is intended raise it" in capsys.readouterr().err
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
@pytest.mark.parametrize("field", ["N", "hyper_width", "beta_width", "width_8", "depth_8", "branch_width"])
@pytest.mark.parametrize("value", [128, 16384, 10**9])
def test_a_configuration_that_asks_for_everything_gets_nothing(tmp_path, field, value):
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


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_calls_itself_safetensors_is_not_executed(tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(ugicm.CheckpointError, match="evil.safetensors: cannot be read as a safetensors checkpoint"):
        ugicm.load(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "executed").exists()  # it would have


@pytest.mark.parametrize(
    ("name", "read"),
    [(run_state.STATE, lambda path: run_state.load_state(path.parent)), ("weights.pth", state_dict.read_state)],
    ids=["state of a run", "foreign weights"],
)
def test_nothing_in_what_training_reads_is_executed(tmp_path, name, read):
    torch.save({"x": Malicious(tmp_path / "executed")}, tmp_path / name)
    with pytest.raises(ugicm.CheckpointError):
        read(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [1e9, float("inf"), float("nan")])
def test_latents_that_no_stream_can_hold_are_refused(value):
    """The encoder would not end."""
    codec = Codec(small_model())
    last = [p for n, p in codec.model.g_a.named_parameters() if n == "head.bias"][0]
    last.data.fill_(value)
    with pytest.raises(ugicm.CheckpointError, match="latents are not finite, or too large"):
        codec.compress(Image.new("RGB", (64, 64)))


# Circumstances


@linux
def test_files_that_may_not_grow(run_python, checkpoint, photos, tmp_path):
    """A real refusal by the system in the middle of writing a file."""
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
    assert run_python("-m", "ugicm", *options).stdout.splitlines()[-1] == "3 done"


def test_a_killed_decompress_is_completed_by_the_next(run_python, checkpoint, tmp_path, make_image):
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
    there = list(images.glob("*.png"))
    assert len(there) >= 3
    for path in there:
        assert Image.open(path).convert("RGB").size == (200, 200)
    done = run_python("-m", "ugicm", "decompress", streams, images, "-c", checkpoint)
    assert done.returncode == 0 and f"{40 - len(there)} done" in done.stdout
    assert sorted(p.name for p in images.iterdir()) == [f"{i:02}.png" for i in range(40)]
    assert len({path.read_bytes() for path in images.iterdir()}) == 1


def test_many_threads_get_what_one_gets(codec, make_image):
    """Streams and images, in tiles and in one piece, for people and machines, all at once."""
    jobs = [(make_image(70 + 9 * i, 140, i), 0.1 + 0.05 * i, 64 * (i % 2), i % 3 / 2) for i in range(12)]

    def work(job):
        image, quality, tile, preference = job
        data = codec.compress(image, quality, tile)
        return data, codec.decompress(data, preference).tobytes()

    alone = list(map(work, jobs))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, jobs * 3)) == alone * 3


def test_what_threads_get_wrong_is_counted(photos, monkeypatch):
    codec = Codec(small_model())
    sources = sorted(photos.rglob("*.png"))[:2]
    same = concurrency.check(codec, sources, [0.2, 0.8], [0.5], threads=3, repeats=2, side=64)
    assert same == {"threads": 3, "images": len(sources), "calls": 4 * len(sources), "streams_that_differ": 0,
                    "images_that_differ": 0}  # fmt: skip
    calls = itertools.count()
    compress = codec.compress
    monkeypatch.setattr(codec, "compress", lambda image, quality: compress(image, 0.3 + 0.1 * (next(calls) % 2)))
    assert concurrency.check(codec, sources[:1], [0.2], [0.5], 2, 4, 64)["streams_that_differ"] == 2


# Large images


def test_the_band_around_borders_of_tiles():
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


def test_the_mosaic_is_the_same_everywhere(photos):
    sources = sorted(photos.rglob("*.png")) + sorted(photos.rglob("*.bmp"))
    first, second = (large_images.mosaic(500, 300, sources) for _ in range(2))
    assert first.size == (500, 300) and first.tobytes() == second.tobytes()
    assert first.tobytes() != large_images.mosaic(500, 300, sources, seed=1).tobytes()


@linux
def test_large_images_at_a_small_size(checkpoint, photos, tmp_path, monkeypatch):
    apart, modes = large_images.in_fresh_process, []

    def run(work, task):
        """The first task in a process of its own, the others here: importing PyTorch takes seconds."""
        modes.append(task["mode"])
        return apart(work, task) if len(modes) == 1 else work(task)

    monkeypatch.setattr(large_images, "in_fresh_process", run)
    monkeypatch.setattr(large_images, "RATE_LIMIT", 1e-4)  # that small tiles exceed
    report = large_images.check(str(checkpoint), sorted(photos.rglob("*.png")), tmp_path, (512, 384), (256, 256), tile=128)
    assert modes == ["compress", *4 * ["decompress"], *2 * ["compress", "decompress"]]
    assert report["compress"]["memory_mib"] > 0 and report["compress"]["processor_seconds"] > 0
    assert [r["region"][2:] for r in report["regions"]] == [[256, 192], [128, 96], [64, 48]]
    assert all(r["area_share"] <= r["tiles_share"] <= 1 for r in report["regions"])
    assert report["one_piece"]["tiles"]["bpp"] > report["one_piece"]["one piece"]["bpp"] > 0
    needed, *_, bits = report["checks"]
    assert needed["what"].startswith("memory") and needed["holds"]
    pieces = report["one_piece"]
    assert bits["value"] == abs(pieces["tiles"]["bpp"] / pieces["one piece"]["bpp"] - 1)
    assert not bits["holds"]
