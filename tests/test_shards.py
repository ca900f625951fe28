"""Shards: conversion by the command line, manifests, interrupted runs, object storage, and training from them."""

import gzip
import io
import json
import os
import tarfile

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from shard_files import image_bytes, write_shard
from small_models import CONFIGS

from ugicm import bitstream
from ugicm.commands.main import main
from ugicm.config import DataConfig, Draw, ImageSource, load_config, to_dict
from ugicm.data import images
from ugicm.data.images import open_sources
from ugicm.data.samples import Epochs, TrainingSamples
from ugicm.errors import ConfigError, UsageError
from ugicm.shards import convert
from ugicm.shards.files import expand
from ugicm.training import loop


def read_shard(data):
    """Return the members of a shard as (name, time, contents)."""
    with tarfile.open(fileobj=io.BytesIO(data)) as shard:
        return [(m.name, m.mtime, shard.extractfile(m).read()) for m in shard]


@pytest.fixture
def shards(tmp_path, make_image):
    """A folder with two shards of two samples."""
    for s in range(2):
        members = []
        for i in range(2):
            image = make_image(70 + s, 64 + i, 2 * s + i)
            members += [(f"a/{i}.cls", b"3"), (f"a/{i}.JPG", image_bytes(image, "JPEG")), (f"a/{i}.json", b"{}")]
        write_shard(tmp_path / f"in-{s:02}.tar", members)
    return tmp_path


def run(*arguments, checkpoint):
    return main([*map(str, arguments), "-c", str(checkpoint), "--device", "cpu"])


def records(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_members_keep_order_and_other_files(shards, checkpoint, capsys):
    pattern = f"{shards}/in-{{00..01}}.tar"
    assert run("compress", pattern, shards / "out", "-q", "0.3", checkpoint=checkpoint) == 0
    for record, name in zip(records(capsys), ("in-00", "in-01"), strict=True):
        assert (record["status"], record["members"], record["images"], record["failed"]) == ("done", 6, 2, 0)
        before = read_shard((shards / f"{name}.tar").read_bytes())
        after = read_shard((shards / "out" / f"{name}.tar").read_bytes())
        assert [m[1] for m in after] == list(range(6))
        for old, new in zip(before, after, strict=True):
            assert new == old if not old[0].endswith(".JPG") else new[0] == old[0].replace(".JPG", ".ugic")
        headers = [bitstream.parse(data) for member, _, data in after if member.endswith(".ugic")]
        assert [round(h.quality, 2) for h in headers] == [0.3, 0.3]
        manifest = json.loads((shards / "out" / f"{name}.manifest.json").read_text())
        assert manifest["bytes"] == (shards / "out" / f"{name}.tar").stat().st_size
        assert manifest["sha256"] == record["sha256"] and manifest["settings"]["quality"] == 0.3


def test_bytes_are_those_of_files_and_of_any_number_of_workers(shards, checkpoint, tmp_path):
    pattern = f"{shards}/in-*.tar"
    for workers in (1, 2):
        assert (
            run("compress", pattern, "-o", shards / f"out{workers}", "--workers", workers, checkpoint=checkpoint) == 0
        )
    for name in ("in-00.tar", "in-01.tar"):
        assert (shards / "out1" / name).read_bytes() == (shards / "out2" / name).read_bytes()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.jpg").write_bytes(read_shard((shards / "in-00.tar").read_bytes())[1][2])
    assert run("compress", tmp_path / "one", tmp_path / "file", checkpoint=checkpoint) == 0
    member = read_shard((shards / "out1" / "in-00.tar").read_bytes())[1][2]
    assert (tmp_path / "file" / "x.jpg.ugic").read_bytes() == member
    assert run("decompress", shards / "out1" / "in-00.tar", shards / "back", "-p", "human", "machine",
               checkpoint=checkpoint) == 0  # fmt: skip
    names = [name for name, *_ in read_shard((shards / "back" / "in-00.tar").read_bytes())]
    assert names[:4] == ["a/0.cls", "a/0.human.png", "a/0.machine.png", "a/0.json"]


def test_images_of_one_key_keep_their_names_apart(tmp_path, make_image, checkpoint):
    data = image_bytes(make_image(64, 64))
    write_shard(tmp_path / "x.tar", [("a.jpg", data), ("a.png", data), ("a.seg.png", data)])
    assert run("compress", tmp_path / "x.tar", tmp_path / "out", checkpoint=checkpoint) == 0
    names = [name for name, *_ in read_shard((tmp_path / "out" / "x.tar").read_bytes())]
    assert names == ["a.ugic", "a.png.ugic", "a.seg.ugic"]


def test_long_names_are_renamed(tmp_path, make_image, checkpoint):
    name = "ü" * 150
    write_shard(tmp_path / "x.tar", [(f"{name}.png", image_bytes(make_image(64, 64)))])
    assert run("compress", tmp_path / "x.tar", tmp_path / "out", checkpoint=checkpoint) == 0
    ((found, _, data),) = read_shard((tmp_path / "out" / "x.tar").read_bytes())
    assert found == f"{name}.ugic" and bitstream.parse(data).width == 64


def test_a_bad_image_stops_nothing(shards, checkpoint, capsys, make_image):
    good = image_bytes(make_image(64, 64))
    write_shard(shards / "bad.tar", [("a.png", b"not an image"), ("a.cls", b"1"), ("b.png", good)])
    (shards / "cut.tar").write_bytes((shards / "in-00.tar").read_bytes()[:2000])
    inputs = [shards / "cut.tar", shards / "bad.tar", shards / "missing.tar", shards / "in-00.tar"]
    assert run("compress", *inputs, "-o", shards / "out", checkpoint=checkpoint) == 1
    found = records(capsys)
    assert [r["status"] for r in found] == ["failed", "done", "failed", "done"]
    assert found[1]["failed"] == 1 and found[1]["failures"][0]["member"] == "a.png"
    assert "not a complete shard" in found[0]["error"] and "missing.tar" in found[2]["error"]
    members = read_shard((shards / "out" / "bad.tar").read_bytes())
    assert [m[0] for m in members] == ["a.png", "a.cls", "b.ugic"] and members[0][2] == b"not an image"
    assert sorted(p.name for p in (shards / "out").iterdir()) == [
        "bad.manifest.json", "bad.tar", "in-00.manifest.json", "in-00.tar"
    ]  # fmt: skip


@pytest.mark.parametrize("damage", [
    lambda data: data[:3000],
    lambda data: data[:1024] + b"\1" * 512 + data[1536:],
    lambda data: data[:1024],  # without an end, where a member could begin
    lambda data: b"",
    lambda data: gzip.compress(data)[:-200],
])  # fmt: skip
def test_a_damaged_shard_is_an_error(tmp_path, damage):
    write_shard(tmp_path / "x.tar", [("a.cls", b"1"), ("b.cls", os.urandom(2000))])
    (tmp_path / "x.tar").write_bytes(damage((tmp_path / "x.tar").read_bytes()))
    job = convert.ShardJob(str(tmp_path / "x.tar"), str(tmp_path / "out" / "x.tar"))
    with pytest.raises(convert.ShardError, match="x.tar: not a complete shard"):
        convert.convert_shard(job, [".png"], None, {})
    assert list((tmp_path / "out").iterdir()) == []


def test_finished_shards_are_kept(shards, checkpoint, other_checkpoint, capsys):
    command = ["compress", f"{shards}/in-*.tar", shards / "out"]
    assert run(*command, checkpoint=checkpoint) == 0
    (shards / "out" / "in-01.manifest.json").unlink()  # as if the run had been killed before
    capsys.readouterr()
    assert run(*command, checkpoint=checkpoint) == 0
    assert [r["status"] for r in records(capsys)] == ["skipped", "done"]
    write_shard(shards / "in-00.tar", [("a.cls", b"1")] * 30)
    assert run(*command, checkpoint=checkpoint) == 1
    assert "other source_bytes" in records(capsys)[0]["error"]
    assert run(*command, "-q", "0.2", checkpoint=other_checkpoint) == 1
    assert all("settings" in r["error"] for r in records(capsys))
    assert run(*command, "--overwrite", checkpoint=other_checkpoint) == 0
    assert [r["status"] for r in records(capsys)] == ["done", "done"]


def test_shards_in_memory(shards, checkpoint, capsys):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/in/a-0.tar.gz", gzip.compress((shards / "in-00.tar").read_bytes()))
    assert run("compress", "memory://in/a-*.tar.gz", "memory://out/", checkpoint=checkpoint) == 0
    assert run("compress", shards / "in-00.tar", shards / "out", checkpoint=checkpoint) == 0
    assert fs.cat_file("/out/a-0.tar") == (shards / "out" / "in-00.tar").read_bytes()
    capsys.readouterr()
    assert run("compress", "memory://in/a-0.tar.gz", "memory://out", checkpoint=checkpoint) == 0
    assert records(capsys)[0]["status"] == "skipped"
    fs.rm("/", recursive=True)


def test_shards_in_an_object_store(shards, checkpoint, monkeypatch):
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(port=0)
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": "x",
                            "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.mkdir("bucket")
        for name in ("in-00.tar", "in-01.tar"):
            fs.put_file(str(shards / name), f"bucket/{name}")
        inputs = "s3://bucket/in-{00..01}.tar"
        assert run("compress", inputs, "s3://bucket/out", "--workers", "2", checkpoint=checkpoint) == 0
        assert run("compress", f"{shards}/in-*.tar", shards / "out", checkpoint=checkpoint) == 0
        for name in ("in-00.tar", "in-01.tar"):
            assert fs.cat_file(f"bucket/out/{name}") == (shards / "out" / name).read_bytes()
        assert run("compress", "s3://bucket/in-02.tar", "s3://bucket/out", checkpoint=checkpoint) == 1
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("arguments, message", [
    (["a.tar"], "name an output folder"),
    (["a.tar", "b.png", "-o", "out"], "cannot be mixed"),
    (["x/a.tar", "y/a.tar", "-o", "out"], "the same output"),
    (["a.tar", "-o", "."], "would replace the input"),
    (["a-*.tar", "-o", "out"], "no such shards"),
    (["nothing://a.tar", "-o", "out"], "nothing"),
    (["a.png", "--ray"], "--ray works on shards"),
])  # fmt: skip
def test_invalid_commands(arguments, message, tmp_path, monkeypatch, capsys, checkpoint):
    monkeypatch.chdir(tmp_path)
    assert run("compress", *arguments, checkpoint=checkpoint) == (1 if arguments[0].startswith("nothing") else 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or arguments[0].startswith("nothing")


def test_patterns():
    assert expand("s3://b/{1..2}-{08..10}.tar") == [f"s3://b/{i}-{j}.tar" for i in (1, 2) for j in ("08", "09", "10")]
    with pytest.raises(UsageError, match="unknown"):
        expand("unknown://*.tar")


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.fixture
def training_shards(tmp_path, make_image):
    """Four shards of three images each, of 70 to 81 x 64 pixels."""
    for s in range(4):
        members = [(f"{i}.png", image_bytes(make_image(70 + 3 * s + i, 64, 3 * s + i))) for i in range(3)]
        write_shard(tmp_path / f"t-{s}.tar", [("0.cls", b"1"), *members])
    return tmp_path


def samples_of(source, **values):
    config = DataConfig(train=(source,), **{"holdout": 0, "crop": 64, **values})
    return TrainingSamples(config, Draw(fixed=0.5), Draw(fixed=0.0), 0, open_sources(config))


@pytest.mark.parametrize("where", ["local", "memory"])
def test_samples_of_shards_are_those_of_images(training_shards, where):
    folder = training_shards
    if where == "memory":
        fs = fsspec.filesystem("memory")
        for path in training_shards.glob("t-*.tar"):
            fs.pipe_file(f"/train/{path.name}", path.read_bytes())
        folder = "memory://train"
    samples = samples_of(ImageSource(shards=f"{folder}/t-{{0..3}}.tar"), cache="none")
    assert [file.name for file in samples.images.store.files[:4]] == [
        "t-0.tar/0.png", "t-0.tar/1.png", "t-0.tar/2.png", "t-1.tar/0.png"
    ]  # fmt: skip
    for number, file in enumerate(samples.images.store.files):
        with tarfile.open(training_shards / file.name.partition("/")[0]) as shard:
            expected = images.read_image(io.BytesIO(shard.extractfile(file.member).read()), 64)
        assert torch.equal(samples.images.store[number][1], expected)
    x = torch.stack([samples[k]["x"] for k in range(12)])
    reread = TrainingSamples(samples.config, Draw(fixed=0.5), Draw(fixed=0.0), 0, samples.images)
    assert all(torch.equal(reread[k]["x"], x[k]) for k in (7, 2, 11))  # any worker, any process, any start
    fsspec.filesystem("memory").store.clear()


def test_shards_are_read_one_after_the_other_through_a_buffer():
    shards = np.repeat(np.arange(10), 20)
    epochs = Epochs([(range(200), 1.0)], 0, shards, 1)
    first = [epochs[k] for k in range(200)]
    assert sorted(first) == list(range(200)) and first != [epochs[k] for k in range(200, 400)]
    assert len({shards[k] for k in first[:20]}) == 1 and first[:20] != sorted(first[:20])
    mixed = Epochs([(range(200), 1.0)], 0, shards, 50)
    order = [mixed[k] for k in range(200)]
    assert sorted(order) == list(range(200)) and len({shards[k] for k in order[:20]}) > 1
    place = {image: k for k, image in enumerate(first)}
    assert max(abs(k - place[image]) for k, image in enumerate(order)) <= 50
    assert order == [Epochs([(range(200), 1.0)], 0, shards, 50)[k] for k in range(200)]
    assert order != [Epochs([(range(200), 1.0)], 1, shards, 50)[k] for k in range(200)]


def test_training_resumes_exactly(training_shards, tmp_path):
    """With another number of loader workers."""

    def config(name, workers):
        values = {
            "run": {"dir": str(tmp_path / name), "save_every": 3},
            "data": {"train": [{"shards": "t-*.tar"}], "crop": 64, "batch": 2, "holdout": 2, "cache": "none",
                     "shuffle": 4, "workers": workers},
            "model": to_dict(CONFIGS["compact"]),
            "objective": {"lambdas": [0.01]},
            "optim": {"steps": 6, "lr": 1e-3},
            "validation": {"every": 6, "crop": 64, "qualities": [0.5], "strip": 0},
        }  # fmt: skip
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        return load_config(tmp_path / "config.yaml", [])

    def stop(run, batches, step=loop.train_step):
        if run.step == 3:
            raise KeyboardInterrupt
        step(run, batches)

    loop.train(config("whole", 0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", stop)
        loop.train(config("parts", 1))
    loop.train(config("parts", 2), resume=True)
    whole, parts = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_invalid_sources(training_shards, tmp_path):
    with pytest.raises(ConfigError, match="either path or shards"):
        ImageSource(path="x", shards="y")
    with pytest.raises(ConfigError, match="no such shards"):
        samples_of(ImageSource(shards=f"{tmp_path}/none-*.tar"))
    (tmp_path / "t-4.tar").write_bytes(gzip.compress((tmp_path / "t-0.tar").read_bytes()))
    with pytest.raises(ConfigError, match=r"t-4\.tar: not a complete, uncompressed shard"):
        samples_of(ImageSource(shards=f"{tmp_path}/t-*.tar"))
    write_shard(tmp_path / "t-4.tar", [("a.cls", b"1")])
    with pytest.raises(ConfigError, match="no images in these shards"):
        samples_of(ImageSource(shards=f"{tmp_path}/t-4.tar"))
