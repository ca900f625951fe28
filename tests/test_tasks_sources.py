"""Images under test: sources, options, and the metadata of results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from task_helpers import brightness_classifier, make_grays

from ugicm.errors import ConfigError
from ugicm.evaluation import digests
from ugicm.evaluation.codecs import load_codec
from ugicm.evaluation.tasks import base, classification, command, fidelity, labels, sources
from ugicm.evaluation.tasks.base import Item, Task
from ugicm.evaluation.tasks.sources import (
    BitstreamFolder,
    CodecSource,
    DecodedFolder,
    Originals,
    add_source_arguments,
    load_source,
    split_missing,
)


@pytest.fixture
def grays(tmp_path) -> Path:
    return make_grays(tmp_path)


def source_arguments(*options):
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return parser.parse_args(options)


def test_run_independent_of_batch_size_and_workers(grays):
    items = labels.labeled_images(grays).items
    records = []
    for batch_size, workers in ((1, 0), (6, 0), (6, 2)):
        evaluator = classification.ClassificationEvaluator(brightness_classifier(), {})
        base.run([evaluator], items, Originals(), batch_size, workers)
        records.append(evaluator.records)
    assert len(records[0]) == 20 and records[0] == records[1] == records[2]


def test_decoded_folder_matches_any_extension(grays, tmp_path):
    items = labels.labeled_images(grays).items
    decoded = tmp_path / "decoded"
    for index, item in enumerate(items):
        target = (decoded / item.key).with_suffix((".webp", ".png", ".bmp")[index % 3])
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(item.path).save(target, **({"lossless": True} if target.suffix == ".webp" else {}))
    evaluator = classification.ClassificationEvaluator(brightness_classifier(), {i.key: i.target for i in items})
    base.run([evaluator], items, DecodedFolder(decoded))
    assert evaluator.evaluate()["top-1"] == 100
    (decoded / "3" / "03.webp").unlink()
    with pytest.raises(ConfigError, match="1 of 20 images are missing in .*decoded: 3/03.png; --allow-missing"):
        split_missing(items, DecodedFolder(decoded), False)
    kept, missing = split_missing(items, DecodedFolder(decoded), True)
    assert len(kept) == 19 and missing == ["3/03.png"]
    with pytest.raises(ConfigError, match="20 of 20"):
        split_missing([Item(f"x{i.key}", i.path) for i in items], DecodedFolder(decoded), True)


def test_run_reports_unreadable_image(grays, tmp_path):
    items = labels.labeled_images(grays).items
    items[4].path.write_bytes(items[4].path.read_bytes()[:40])
    Image.new("RGB", (5, 5)).save(tmp_path / "other.png")
    evaluators = [
        classification.ClassificationEvaluator(brightness_classifier(), {i.key: i.target for i in items}),
        fidelity.FidelityEvaluator(),
    ]
    outcome = base.run(evaluators, items, Originals(), batch_size=3)
    assert list(outcome.failed) == [items[4].key] and str(items[4].path) in outcome.failed[items[4].key]
    assert len(evaluators[0].records) == len(evaluators[1].records) == 19
    assert evaluators[0].evaluate()["top-1"] == 100


def test_run_reports_codec_failure(tmp_path, make_image):
    for name, size in (("a", (40, 30)), ("b", (17000, 4)), ("c", (40, 30))):
        make_image(*size).save(tmp_path / f"{name}.png")
    items = [Item(f"{name}.png", tmp_path / f"{name}.png") for name in "abc"]
    evaluator = fidelity.FidelityEvaluator()
    outcome = base.run([evaluator], items, CodecSource(load_codec("webp"), 50, None))
    assert list(evaluator.records) == ["a.png", "c.png"] and list(outcome.failed) == ["b.png"]
    assert f"{tmp_path / 'b.png'}: WebP at 50: " in outcome.failed["b.png"]


def test_bitstream_folder_and_codec_source_agree(tmp_path, make_image):
    from test_codecs import JpegCodec

    from ugicm.evaluation.codecs import UgicmCodec

    folder, bitstreams = tmp_path / "set", tmp_path / "bitstreams"
    (folder / "a").mkdir(parents=True), (bitstreams / "a").mkdir(parents=True)
    items = []
    for index in range(3):
        image = make_image(170, 180, index)
        image.save(folder / "a" / f"{index}.png")
        (bitstreams / "a" / f"{index}.ugic").write_bytes(JpegCodec().compress(image, 0.5))
        items.append(Item(f"a/{index}.png", folder / "a" / f"{index}.png"))
    scores = []
    for source in (
        BitstreamFolder(bitstreams, JpegCodec(), 1.0),
        CodecSource(UgicmCodec(JpegCodec(), "x", "x"), 0.5, 1.0),
    ):
        evaluator = fidelity.FidelityEvaluator()
        outcome = base.run([evaluator], items, source)
        sizes = {f"a/{i}.png": (bitstreams / "a" / f"{i}.ugic").stat().st_size for i in range(3)}
        assert outcome.bpp == {key: 8 * size / (170 * 180) for key, size in sizes.items()}
        scores.append(evaluator.evaluate())
    assert scores[0] == scores[1] and 10 < scores[0]["psnr-rgb"] < 25 and 0.5 < scores[0]["ms-ssim-rgb"] < 1


def test_results_identify_dataset_and_model(grays, tmp_path, checkpoint, capsys):
    from small_models import small_model

    import ugicm
    from ugicm.checkpoints.native import save_model

    items = labels.labeled_images(grays).items

    def meta(*options, items=items):
        evaluator = classification.ClassificationEvaluator(brightness_classifier(), {i.key: i.target for i in items})
        args = source_arguments(*map(str, options), "-o", str(tmp_path / "s.json"))
        task = Task("classification", items, [evaluator])
        assert command.evaluate(lambda args, device: task, args) == 0
        return json.loads((tmp_path / "s.json").read_text())["meta"]

    def dataset(*options, **more):
        return meta(*options, **more)["dataset"]

    # Checkpoints that decode the same bitstreams to different images.
    model = small_model()
    with torch.no_grad():
        next(model.g_s.parameters()).add_(0.01)
    save_model(tmp_path / "other.safetensors", model)
    codec, bitstreams = ugicm.load(checkpoint), tmp_path / "bitstreams"
    assert codec.fingerprint == ugicm.load(tmp_path / "other.safetensors").fingerprint
    for item in items:
        (bitstreams / item.key).parent.mkdir(parents=True, exist_ok=True)
        (bitstreams / item.key).with_suffix(".ugic").write_bytes(codec.compress(item.path, 0.5))
    one, other = (meta("--bitstreams", bitstreams, "-c", path) for path in (checkpoint, tmp_path / "other.safetensors"))
    assert one["dataset"] == other["dataset"] and one["model"] != other["model"]
    assert f"weights {digests.model_digest(codec)} " in one["model"] and one["model"] in capsys.readouterr().out

    plain = meta("--batch-size", 7)
    assert (plain["batch_size"], plain["limit"], plain["dataset"]["images"]) == (7, None, 20)
    assert plain["dataset"]["digest"] == plain["dataset"]["tested"] == one["dataset"]["digest"]
    assert one["dataset"]["tested"] != one["dataset"]["digest"]
    few = meta("--limit", 5)
    assert (few["limit"], few["dataset"]["images"]) == (5, 5) and few["dataset"]["digest"] != one["dataset"]["digest"]
    relabeled = dataset(items=[Item(i.key, i.path, (i.target + 1) % 10) for i in items])
    assert relabeled["truth"] != plain["dataset"]["truth"] and relabeled["digest"] == plain["dataset"]["digest"]
    items[0].path.write_bytes(items[1].path.read_bytes())
    changed = dataset()
    assert changed["digest"] != plain["dataset"]["digest"] and changed["truth"] == plain["dataset"]["truth"]
    # Masks are identified by their contents. Originals are not required.
    masks = [Item(i.key, Path("absent"), i.path) for i in items]
    before = command._describe_dataset(masks, DecodedFolder(grays), None)
    assert before["digest"] is None and before["tested"] == changed["tested"]
    items[0].path.write_bytes(items[2].path.read_bytes())
    assert before["truth"] != command._describe_dataset(masks, DecodedFolder(grays), None)["truth"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--quality", "0"], "--quality requires --codec"),
        (["--bitstreams", "x", "--quality", "0"], "--quality requires --codec"),
        (["--decoded", "x", "--quality", "0"], "--quality requires --codec"),
        (["-c", "x"], "-c requires --bitstreams"),
        (["--preference", "0"], "--preference requires --bitstreams or --codec ugicm"),
        (["--decoded", "x", "--preference", "human"], "--preference requires"),
        (["--codec", "jpeg", "--quality", "50", "-c", "x"], "-c requires"),
        (["--codec", "jpeg", "--quality", "50", "--preference", "1"], "--preference requires"),
        (["--codec", "ugicm", "-c", "b"], "-c requires --bitstreams"),
    ],
)
def test_load_source_rejects_unused_options(options, message):
    with pytest.raises(ConfigError, match=message):
        load_source(source_arguments(*options), "cpu")


def test_load_source_codec_options(monkeypatch):
    class FakeCodec:
        integer, lowest, highest, identity = False, 0, 1, "ours"

        def __init__(self, text, device, preferences):
            self.text, self.preferences = text, preferences

    monkeypatch.setattr(sources.codecs, "load_codec", FakeCodec)
    for options, text, setting, preference in (
        (["--codec", "ugicm"], "ugicm", 0.5, 1.0),
        (["--codec", "ugicm=m.pth:label=x", "--quality", "0"], "ugicm=m.pth:label=x", 0, 1.0),
        (["--codec", "ugicm=m.pth", "--preference", "human"], "ugicm=m.pth", 0.5, 0.0),
        (["--codec", "ugicm", "--preference", "machine"], "ugicm", 0.5, 1.0),
        (["--codec", "ugicm", "--preference", "0.3"], "ugicm", 0.5, 0.3),
    ):
        source = load_source(source_arguments(*options), "cpu")
        assert (source.codec.text, source.setting, source.preference) == (text, setting, preference)


def test_bitstreams_of_gray_and_transparent_images(tmp_path, make_image, checkpoint):
    """They decode to RGB images, as their originals are read."""
    import ugicm

    codec = ugicm.load(checkpoint)
    image = make_image(64, 64)
    for name, converted in (("gray", image.convert("L")), ("clear", image.convert("RGBA"))):
        if name == "clear":
            converted.putalpha(0)
        converted.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.ugic").write_bytes(codec.compress(converted))
        source = BitstreamFolder(tmp_path, codec, 1.0)
        decoded, size = source.load(Item(f"{name}.png", tmp_path / f"{name}.png"), None)
        assert decoded.mode == "RGB" and size == (tmp_path / f"{name}.ugic").stat().st_size
    assert decoded.getextrema() == ((255, 255),) * 3  # on white


def test_decoded_image_of_two_originals(tmp_path, make_image):
    """a.jpg and a.png of a folder cannot both be tested as a.webp."""
    for name in ("set/a.jpg", "set/a.png", "decoded/a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_image().save(tmp_path / name)
    items = sources.folder_items(tmp_path / "set")
    with pytest.raises(ConfigError, match="decoded: a.jpg and a.png both match .*a.webp; rename one"):
        split_missing(items, DecodedFolder(tmp_path / "decoded"), False)
    for item in items:
        make_image().save(tmp_path / "decoded" / f"{item.key}.webp")
    (tmp_path / "decoded" / "a.webp").unlink()
    assert split_missing(items, DecodedFolder(tmp_path / "decoded"), False) == (items, [])
