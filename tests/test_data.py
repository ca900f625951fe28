"""Training images and object masks: finding, decoding, cropping, collating, and invalid files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.make_instances import annotate
from ugicm.config import DataConfig, Draw, ImageSource
from ugicm.data import images
from ugicm.data.images import ImageStore, open_sources
from ugicm.data.instances import Instances, bounding_box
from ugicm.data.samples import Epochs, StepBatches, TrainingSamples, View, _is_turned, choose_view, collate, draw
from ugicm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def samples_of(folder, instances=None, seed=0, beta=1.0, **values):
    """TrainingSamples over ``folder``, without hold-out unless asked for."""
    source = ImageSource(str(folder), instances=instances and str(instances))
    config = DataConfig(train=(source,), **{"holdout": 0, **values})
    images = open_sources(config)
    return TrainingSamples(config, Draw(range=(0.0, 1.0)), Draw(fixed=beta), seed, images)


@pytest.fixture
def folder(tmp_path, make_image):
    """Six images in a tree, one of them smaller than a crop."""
    place = tmp_path / "train"
    (place / "b").mkdir(parents=True)
    for i in range(4):
        make_image(100 + 10 * i, 90, i).save(place / f"{i}.png")
    make_image(80, 120, 9).save(place / "b" / "upright.png")
    make_image(30, 20, 10).save(place / "b" / "tiny.png")
    return place


def test_find_images_in_folders_and_lists(folder, tmp_path):
    names = ["0.png", "1.png", "2.png", "3.png", "tiny.png", "upright.png"]
    assert [p.name for p in images.find_images(folder)] == names
    (tmp_path / "list.txt").write_text("# a list\ntrain/1.png\n\ntrain/b/tiny.png\n")
    assert [p.name for p in images.find_images(tmp_path / "list.txt")] == ["1.png", "tiny.png"]
    assert images.find_images(folder / "0.png") == [folder / "0.png"]
    (tmp_path / "list.txt").write_text("train/none.png")
    with pytest.raises(ConfigError, match=r"none\.png, which does not exist"):
        images.find_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"list\.txt: cannot be read as a list of images"):
        images.find_images(tmp_path / "list.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no files to work on in this folder"):
        images.find_images(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such folder, list or image"):
        images.find_images(tmp_path / "absent")


def test_hold_out_depends_on_file_names_only(folder):
    files = images.find_images(folder)
    kept, out = images.hold_out(files, 2)
    assert sorted(kept + out) == list(range(6)) and len(out) == 2
    names = {files[i].name for i in out}
    moved = [p.parent / "elsewhere" / p.name for p in reversed(files)]
    assert {moved[i].name for i in images.hold_out(moved, 2)[1]} == names
    with pytest.raises(ConfigError, match="all 6 images are held out"):
        samples_of(folder, holdout=6)


def test_held_out_images_are_excluded_from_all_sources(folder):
    (folder / "b" / "linked.png").symlink_to(folder / "1.png")
    config = DataConfig(train=(ImageSource(str(folder)), ImageSource(str(folder / "b"), weight=3)), crop=64)
    for count in (1, 3, 4, 5):
        images = open_sources(replace(config, holdout=count))
        away = {path.resolve() for path in images.held_out}
        trained = {path.resolve() for path in images.store.files}
        assert len(images.held_out) == len(away) == count and len(trained) == 6 - count and not away & trained
    with pytest.raises(ConfigError, match="all 6 images are held out .* .holdout: 7.; lower data.holdout"):
        open_sources(replace(config, holdout=7))


@pytest.mark.parametrize("cache", ["none", "ram", "auto"])
def test_corrupt_images_are_reported_once_and_skipped(folder, cache, capsys):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "2.png").write_bytes(b"DDS \x7c" + bytes(123))  # Pillow says NotImplementedError to its header
    samples = samples_of(folder, crop=64, cache=cache)
    seen = {tuple(samples[i]["x"].shape) for i in range(20)}
    assert seen == {(3, 64, 64)}
    said = capsys.readouterr().err
    assert said.count("1.png") == said.count("2.png") == 1


def test_folder_of_corrupt_images_is_rejected(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="none of the training images can be read"):
        ImageStore([tmp_path / "a.png"], 64, "ram")
    with pytest.raises(ConfigError, match="none of the training images can be read"):
        ImageStore([tmp_path / "a.png"], 64, "none")[0]


def test_caches_give_the_same_samples(folder):
    a, b = samples_of(folder, crop=64, cache="none"), samples_of(folder, crop=64, cache="ram")
    assert a.images.store.cache == "none" and b.images.store.cache == "ram"
    assert samples_of(folder, crop=64).images.store.cache == "ram"  # auto: they fit
    for i in range(12):
        assert torch.equal(a[i]["x"], b[i]["x"])


def test_samples_depend_on_seed_and_number_only(folder):
    first, again, other = (samples_of(folder, crop=64, seed=s) for s in (3, 3, 4))
    order = [7, 2, 11, 2]
    for i in order:
        assert torch.equal(first[i]["x"], again[i]["x"]) and first[i]["quality"] == again[i]["quality"]
    assert any(first[i]["quality"] != other[i]["quality"] for i in order)
    assert len({first[i]["quality"] for i in range(8)}) == 8


def test_crops_are_parts_of_the_image(tmp_path):
    place = tmp_path / "p"
    place.mkdir()
    rows, columns = np.mgrid[:100, :120]
    Image.fromarray(np.stack([rows, columns, rows * 0], 2).astype(np.uint8)).save(place / "a.png")
    samples, flipped = samples_of(place, crop=64), 0
    for i in range(16):
        x = samples[i]["x"].int()
        assert (x[0].diff(dim=0) == 1).all() and (x[0].diff(dim=1) == 0).all()
        step = x[1].diff(dim=1)
        assert (step.abs() == 1).all() and len(step.unique()) == 1
        flipped += int(step[0, 0] == -1)
    assert 0 < flipped < 16
    assert all((samples_of(place, crop=64, flip=False)[i]["x"][1].int().diff(dim=1) == 1).all() for i in range(8))


def test_read_image_enlarges_small_images(folder):
    image = images.read_image(folder / "b" / "tiny.png", min_side=64)
    assert image.shape == (3, 64, 96) and image.dtype == torch.uint8


def test_auto_cache_estimates_decoded_sizes(tmp_path, make_image, monkeypatch):
    make_image(20, 10).save(tmp_path / "a.png")  # enlarged to 128x64 for crops of 64
    for limit, cache in ((3 * 128 * 64, "none"), (3 * 128 * 64 + 1, "ram")):
        monkeypatch.setattr(images, "RAM_CACHE_LIMIT", limit)
        assert ImageStore([tmp_path / "a.png"], 64, "auto").cache == cache


def test_replacement_of_a_corrupt_image_has_its_own_number(tmp_path, make_image):
    (tmp_path / "a.png").write_bytes(b"")
    make_image(80, 70).save(tmp_path / "b.png")
    store = ImageStore([tmp_path / "a.png", tmp_path / "b.png"], 64, "none")
    assert store[0][0] == 1  # whose instances are looked up by it


def test_scaled_and_whole_views(folder):
    samples = samples_of(folder, crop=64, scale=(0.7, 1.0))
    assert all(samples[i]["x"].shape == (3, 64, 64) for i in range(8))
    rng = np.random.default_rng(0)
    config = DataConfig(train=(ImageSource("x"),), crop=64, whole=1.0)
    assert choose_view(config, 90, 130, 1.0, rng).width == 130
    assert choose_view(config, 90, 130, 0.0, rng).width == 64  # only crops for human preference
    ramp = torch.arange(128, dtype=torch.uint8).expand(3, 128, 128)
    halved = View(0, 0, 128, 128, flip=False).cut(ramp, 64).float()
    assert (halved[0, 0] - torch.arange(64) * 2 - 0.5).abs().max() <= 1  # means of pairs, up to rounding


def test_crops_reach_every_edge():
    rng, config = np.random.default_rng(0), DataConfig(train=(ImageSource("x"),), crop=64)
    views = [choose_view(config, 66, 65, 0.0, rng) for _ in range(60)]
    assert {v.top for v in views} == {0, 1, 2} and {v.left for v in views} == {0, 1}


def test_resized_images_do_not_wrap_around():
    edge = torch.zeros(3, 128, 128, dtype=torch.uint8)
    edge[:, :, 64:] = 255
    part = View(0, 0, 128, 128, flip=False).cut(edge, 96)
    assert part[:, :, :47].max() < 128 <= part[:, :, 49:].min()  # bicubic overshoots


def test_epochs_repeat_images_by_weight():
    epochs = Epochs([([0, 1, 2, 3], 1.0), ([4, 5], 2.0), ([6, 7, 8, 9], 0.5)], seed=1)
    assert epochs.length == 4 + 4 + 2
    counts = np.bincount([epochs[i] for i in range(10 * epochs.length)], minlength=10)
    assert (counts[:4] == 10).all() and (counts[4:6] == 20).all() and counts[6:].sum() == 20
    assert [epochs[i] for i in range(10)] != [epochs[i] for i in range(10, 20)]


def test_epochs_draw_fractional_repetitions_anew():
    epochs = Epochs([([0, 1, 2, 3], 1.5)], seed=1)
    counts = np.bincount([epochs[i] for i in range(40 * epochs.length)], minlength=4)
    assert counts.sum() == 240 and (counts > 50).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "/absent"}, "data.train: /absent: not found; put images there, or use others: --set 'data.train="),
        ({"path": "/", "instances": "/absent.json"}, "data.train.instances: /absent.json: not found; put a COCO"),
    ],
)
def test_open_sources_names_missing_data(values, message):
    config = DataConfig(train=(ImageSource(**values),))
    with pytest.raises(ConfigError) as caught:
        open_sources(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_draw_distributions():
    rng = np.random.default_rng(0)
    assert {draw(Draw(choices=(0.0, 1.0)), rng) for _ in range(40)} == {0.0, 1.0}
    assert draw(Draw(fixed=0.3), rng) == 0.3
    values = np.array([draw(Draw(range=(0.2, 0.6), ends=0.5), rng) for _ in range(2000)])
    assert values.min() == 0.2 and values.max() == 0.6
    assert np.mean((values == 0.2) | (values == 0.6)) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_step_batches_are_independent_of_division(world, parts):
    dealt = [list(StepBatches(8, parts, rank, world, 2, 5)) for rank in range(world)]
    for step in range(3):
        numbers = [n for rank in dealt for part in rank[step * parts : (step + 1) * parts] for n in part]
        assert sorted(numbers) == list(range((step + 2) * 8, (step + 3) * 8))
    with pytest.raises(ConfigError, match="not divisible by optim.accumulate x processes = 1 x 3"):
        StepBatches(8, 1, 0, 3, 0, 1)


# ---- instances ------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path, make_image):
    """An image of 100 x 80 with a polygon, two run-length codes, a crowd; and one without objects."""
    from pycocotools import mask as coding

    place = tmp_path / "coco"
    place.mkdir()
    make_image(100, 80, 1).save(place / "one.png")
    make_image(100, 80, 2).save(place / "two.png")
    rows, columns = np.mgrid[:80, :100]
    circle = np.asfortranarray((np.hypot(rows - 40, columns - 70) < 15).astype(np.uint8))
    code = coding.encode(circle)
    counts = [100 * 80 - 80 * 10, 80 * 10]  # column by column: the last ten columns
    shapes = [
        [[10, 20, 40, 20, 40, 60, 10, 60]],
        {"size": [80, 100], "counts": code["counts"].decode()},
        {"size": [80, 100], "counts": counts},
    ]
    annotations = [{"id": i, "image_id": 5, "segmentation": s, "iscrowd": 0} for i, s in enumerate(shapes)]
    annotations.append({"id": 9, "image_id": 5, "segmentation": shapes[2], "iscrowd": 1})
    listed = [{"id": 5, "file_name": "one.png", "width": 100, "height": 80},
              {"id": 6, "file_name": "two.png", "width": 100, "height": 80}]  # fmt: skip
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": []}))
    return place, path, circle


def test_coco_masks(coco):
    place, path, circle = coco
    one, two = place / "one.png", place / "two.png"
    instances = Instances(path, [one, two])
    assert instances.count(one) == 3 and two not in instances
    polygon, round_one, last = (instances.mask(one, k)[0] for k in range(3))
    assert bounding_box(polygon) == (20, 10, 60, 40) and polygon.sum() == 30 * 40
    assert np.array_equal(round_one.numpy(), circle)
    assert bounding_box(last) == (0, 90, 80, 100)
    assert bounding_box(torch.zeros(4, 4, dtype=torch.uint8)) is None


def test_masks_are_matched_by_path_and_not_by_name_alone(coco):
    place, path, _ = coco
    document = json.loads(path.read_text())
    document["images"][0]["file_name"] = "coco/one.png"
    path.write_text(json.dumps(document))
    other = place.parent / "other" / "one.png"
    instances = Instances(path, [place / "one.png", other])
    assert place / "one.png" in instances and other not in instances


def test_invalid_instance_files_are_rejected(coco, tmp_path):
    place, path, _ = coco
    with pytest.raises(ConfigError, match="cannot be read"):
        Instances(tmp_path / "none.json", [])
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ConfigError, match="not COCO JSON"):
        Instances(tmp_path / "bad.json", [])
    with pytest.raises(ConfigError, match="contains none of the 1 images, such as three.png"):
        Instances(path, [place / "three.png"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["images"][1].pop("file_name"), "'file_name' is missing"),
        (lambda d: d["images"][0].pop("height"), "'height' is missing"),
        (lambda d: d["annotations"].append(5), "'int' object has no attribute"),
        (lambda d: d["annotations"][0].update(image_id=[5]), "unhashable"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2]]), "annotation 0: bad segmentation"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, 1e9, 1e9, 0, 1e9]]), "polygon far outside"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, float("nan"), 5, 7, 8]]), "polygon far outside"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts="garbage"), "annotation 1: .* invalid character"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts="P"), "annotation 1: .* within a number"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts="4\0"), "annotation 1: .* invalid character"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts="4"), "annotation 1: .* do not add up to 100x80"),
        (lambda d: d["annotations"][2]["segmentation"].update(counts=[-8, 8008]), "annotation 2: .*(add up|bounds)"),
    ],
)
def test_malformed_annotations_are_rejected_at_loading(coco, change, message):
    place, path, _ = coco
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"instances.json: not COCO JSON with images and annotations: .*{message}"):
        Instances(path, [place / "one.png"])


def white_circle(coco):
    """One image, white where its mask is. Returns its folder, and the file of masks."""
    place, path, circle = coco
    white = np.zeros((80, 100, 3), np.uint8)
    white[circle > 0] = 255
    Image.fromarray(white).save(place / "one.png")
    (place / "two.png").unlink()
    return place, path


def test_masks_are_cropped_with_their_image(coco):
    place, path = white_circle(coco)
    samples, found = samples_of(place, path, crop=64, max_instances=3), 0
    for i in range(30):
        sample = samples[i]
        bright = sample["x"][0] > 127
        found += any(torch.equal(mask.bool(), bright) for mask in sample["masks"])
        assert len(sample["masks"]) <= 3
    assert found > 10  # in most crops enough of the circle is seen
    assert samples_of(place, path, crop=64, beta=0.0)[0]["masks"] == []
    whole = samples_of(place, path, crop=64, whole=1.0)[0]
    assert len(whole["masks"]) == 2  # the strip of ten columns is too narrow then
    assert all(mask.shape == (64, 64) for mask in whole["masks"])
    assert len(samples_of(place, path, crop=64, whole=1.0, max_instances=1)[0]["masks"]) == 1


def test_masks_of_a_rotated_image_are_not_used(coco):
    place, path, _ = coco
    Image.open(place / "one.png").transpose(Image.Transpose.ROTATE_90).save(place / "one.png")
    (place / "two.png").unlink()
    assert samples_of(place, path, crop=64, whole=1.0)[0]["masks"] == []


def test_collate_accepts_any_number_of_instances(coco):
    place, path, _ = coco
    samples = samples_of(place, path, crop=64, whole=1.0, max_instances=4)
    batch = collate([samples[i] for i in range(8)])
    assert batch["x"].shape == (8, 3, 64, 64) and batch["x"].dtype == torch.uint8
    counts = torch.bincount(batch["owners"], minlength=8)
    assert set(counts.tolist()) == {0, 2}  # "two.png" has none
    assert len(batch["masks"]) == len(batch["boxes"]) == int(counts.sum())
    assert [tuple(box) for box in batch["boxes"].tolist()] == [bounding_box(mask) for mask in batch["masks"]]
    assert "masks" not in collate([samples_of(place, None, crop=64)[0]])


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_masks_of_images_with_exif_orientation(coco, orientation):
    """Masks of other tools may be of the stored pixels, so they are only used if the image is upright."""
    place, path, _ = coco
    (place / "two.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(place / "one.png").crop((0, 0, 80, 80)).save(place / "one.png", exif=exif)
    document = json.loads(path.read_text())
    document["images"][0].update(width=80)
    document["annotations"] = document["annotations"][:1]
    for info, used in (({}, orientation == 1), ({"made_by": "regions"}, True)):
        path.write_text(json.dumps({**document, "info": info}))
        _is_turned.cache_clear()
        assert bool(samples_of(place, path, crop=64, whole=1.0)[0]["masks"]) == used


def test_masks_larger_than_their_image_are_not_decoded(coco, monkeypatch):
    place, path, _ = coco
    (place / "two.png").unlink()
    document = json.loads(path.read_text())
    document["annotations"] = [
        {"id": 1, "image_id": 5, "segmentation": {"size": [4000, 5000], "counts": [4000 * 5000]}}
    ]
    path.write_text(json.dumps(document))
    monkeypatch.setattr(Instances, "mask", lambda *_: pytest.fail("decoded"))
    assert samples_of(place, path, crop=64, whole=1.0)[0]["masks"] == []


def test_masks_are_enlarged_with_their_image(coco):
    place, path = white_circle(coco)
    samples, best = samples_of(place, path, crop=128, max_instances=3), 0
    for i in range(10):
        bright = samples[i]["x"][0] > 127
        for mask in samples[i]["masks"]:
            best = max(best, float((mask.bool() & bright).sum() / (mask.bool() | bright).sum()))
    assert best > 0.9


def test_make_instances_script(tmp_path, capsys, monkeypatch):
    pytest.importorskip("skimage")
    from scripts import make_instances as script

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["make_instances.py", *map(str, arguments)])
        status = script.main()
        return status, *capsys.readouterr()

    place, output = tmp_path / "images", tmp_path / "made.json"
    (place / "sub").mkdir(parents=True)
    rows, columns = np.mgrid[:96, :128]
    disc = np.hypot(rows - 40, columns - 50) < 20
    ground = np.stack([rows * 0 + 40, 90 + columns // 4, rows * 0 + 60], 2)
    file = place / "sub" / "disc.png"
    Image.fromarray(np.where(disc[..., None], (220, 40, 40), ground).astype(np.uint8)).save(file)
    (place / "broken.png").write_bytes(b"")
    status, said, warned = run(place, "-o", output)
    assert status == 1 and "1 images added, 0 already present, 1 unreadable" in said and "broken.png" in warned
    instances = Instances(output, [file])
    masks = [instances.mask(file, k)[0].numpy() > 0 for k in range(instances.count(file))]
    assert max((m & disc).sum() / (m | disc).sum() for m in masks[:2]) > 0.6
    assert "0 images added, 1 already present" in run(place, "-o", output)[1]  # cached
    status, _, warned = run(place, "-o", output, "-n", "2")
    assert status == 2 and "choose another --output" in warned
    monkeypatch.setattr(script, "propose", lambda *_: interrupt())
    status, _, warned = run(place, "-o", tmp_path / "x.json")
    assert status == 130 and warned.count("\n") == 1 + 1 and "repeat the command to continue" in warned
    status, _, warned = run(tmp_path / "absent", "-o", tmp_path / "x.json")
    assert status == 2 and "no such folder" in warned


def interrupt():
    raise KeyboardInterrupt


def test_annotate_continues_after_an_interruption(folder, tmp_path):
    def proposer(image, count):
        calls.append(image)
        return interrupt() if len(calls) == 4 else [np.ones(image.size[::-1], bool)] * 2

    calls, output = [], tmp_path / "made.json"
    with pytest.raises(KeyboardInterrupt):
        annotate(folder, output, proposer, 2, "test")
    assert len(json.loads(output.read_text())["images"]) == 3
    assert annotate(folder, output, proposer, 2, "test") == (3, 3, 0)
    document = json.loads(output.read_text())
    assert [image["id"] for image in document["images"]] == list(range(1, 7))
    assert [(a["id"], a["image_id"]) for a in document["annotations"]] == [(k + 1, k // 2 + 1) for k in range(12)]
    with pytest.raises(ConfigError, match="no such folder"):
        annotate(tmp_path / "absent", tmp_path / "none.json", proposer, 2, "test")
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        ({}, "'images' is missing"),
        ({"images": []}, "'annotations' is missing"),
        ({"images": [{}], "annotations": []}, "'file_name' is missing"),
        ({"images": [1], "annotations": []}, "not subscriptable"),
        ({"images": {}, "annotations": []}, "are not lists"),
        ({"images": [], "annotations": 5}, "are not lists"),
    ],
)
def test_annotate_rejects_other_output_files(folder, tmp_path, more, message):
    output = tmp_path / "made.json"
    output.write_text(json.dumps({"info": {"made_by": "test"}, **more}))
    with pytest.raises(ConfigError, match=f"made.json: not an output of this command: .*{message}"):
        annotate(folder, output, lambda *_: [], 2, "test")


def test_annotate_accepts_images_and_lists(tmp_path, make_image):
    """Images and lists are valid sources; their instances are found by path."""
    deep, far = tmp_path / "here/a/b/c/d/x.png", tmp_path / "there/x.png"
    for number, path in enumerate((deep, far, tmp_path / "here/x.png")):
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(40, 30, number).save(path)
    (tmp_path / "here/list.txt").write_text(f"a/b/c/d/x.png\n../there/x.png\n{far}\nx.png\nx.png\n")

    def corner(image, count):  # of another size in every image
        mask = np.zeros(image.size[::-1], bool)
        mask[0, : 1 + made.setdefault(image.tobytes(), len(made))] = True
        return [mask]

    made = {}
    for source, names in ((tmp_path / "here/x.png", ["x.png"]),
                          (tmp_path / "here/list.txt", ["a/b/c/d/x.png", "../there/x.png", str(far), "x.png"])):
        output = source.with_suffix(".json")
        assert annotate(source, output, corner, 1, "test") == (len(names), 0, 0)
        assert [image["file_name"] for image in json.loads(output.read_text())["images"]] == names
        files = images.find_images(source)
        instances = Instances(output, files)
        for file in files:
            assert int(instances.mask(file, 0).sum()) == 1 + made[Image.open(file).tobytes()]


def test_hold_out_of_names_that_are_not_text(tmp_path):
    files = [tmp_path / name for name in ("caf\udce9.png", "b.png", "c.png")]
    kept, out = images.hold_out(files, 1)
    assert sorted(kept + out) == [0, 1, 2] and len(out) == 1
