"""Training on compressed images: data sets of bitstreams, and compression as an augmentation."""

import json

import pytest
import torch
from PIL import Image
from shard_files import write_shard

from ugicm.errors import UsageError
from ugicm.integrations import webdataset as ugicm_webdataset
from ugicm.integrations.shared import shared_codec

torchvision = pytest.importorskip("torchvision")
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from ugicm.integrations.torchvision import BitstreamFolder, Recompress  # noqa: E402

METHODS = ["fork", pytest.param("spawn", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def codec():
    return shared_codec()


@pytest.fixture
def bitstreams(codec, make_image):
    return codec.compress([make_image(64, 64, seed) for seed in range(3)], 0.2)


@pytest.fixture
def folder(tmp_path, bitstreams):
    for name, data in zip(("cats/a", "dogs/b", "dogs/c"), bitstreams):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.ugic").write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_bitstream_folder_in_workers(folder, bitstreams, codec, method):
    data = BitstreamFolder(folder, transform=v2.CenterCrop(32))
    assert (len(data), data.classes) == (3, ["cats", "dogs"])
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context=method)
    ((images, labels),) = loader
    assert labels.tolist() == [0, 1, 1]
    expected = torch.stack(codec.decompress(bitstreams, "machine", output="tensor"))[..., 16:48, 16:48]
    assert torch.equal(images, expected)


def test_bitstream_folder_without_classes(folder, tmp_path):
    data = BitstreamFolder(folder / "dogs", preference=0.0)
    assert data.classes == ["."] and [label for _, label in data] == [0, 0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: no .ugic files"):
        BitstreamFolder(tmp_path / "empty")


def test_recompress_gives_what_the_codec_gives(codec, make_image):
    image = make_image(64, 48)
    expected = codec.decompress(codec.compress(image, 0.3), "machine")
    recompress = Recompress(0.3, "machine")
    assert recompress(image) == expected
    levels = v2.functional.pil_to_tensor(image)
    assert torch.equal(recompress(levels), v2.functional.pil_to_tensor(expected))
    batch = tv_tensors.Image(torch.stack([levels, levels]))
    boxes = tv_tensors.BoundingBoxes([[0, 0, 9, 9]], format="XYXY", canvas_size=(48, 64))
    images, same_boxes, label = recompress(batch, boxes, 7)
    assert isinstance(images, tv_tensors.Image) and torch.equal(images[1], recompress(levels))
    assert torch.equal(same_boxes, boxes) and label == 7


def test_recompress_draws_the_quality(monkeypatch, codec, make_image):
    drawn = []
    compress = type(codec).compress
    monkeypatch.setattr(type(codec), "compress", lambda self, image, q: drawn.append(q) or compress(self, image, q))
    torch.manual_seed(0)
    for _ in range(20):
        Recompress((0.2, 0.4))(make_image(64, 64))
    assert 0.2 <= min(drawn) < 0.25 and 0.35 < max(drawn) <= 0.4
    for bad in (-0.1, (0.5, 1.5), (0.5, 0.2)):
        with pytest.raises(ValueError, match="quality is"):
            Recompress(bad)


class Photos(torch.utils.data.Dataset):
    """One image, recompressed."""

    def __init__(self, image: Image.Image):
        self.image, self.transform = image, Recompress(0.3)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return v2.functional.pil_to_tensor(self.transform(self.image))


@pytest.mark.parametrize("method", METHODS)
def test_recompress_in_workers(make_image, method):
    data = Photos(make_image(64, 64))
    loader = torch.utils.data.DataLoader(data, num_workers=1, multiprocessing_context=method)
    assert torch.equal(next(iter(loader))[0], data[0])


@pytest.mark.parametrize("method", METHODS)
def test_webdataset_handler_in_workers(tmp_path, bitstreams, codec, method):
    wds = pytest.importorskip("webdataset")
    samples = [((f"{i}.ugic", data), (f"{i}.cls", b"%d" % i)) for i, data in enumerate(bitstreams)]
    write_shard(tmp_path / "shard-000.tar", [member for sample in samples for member in sample])
    data = wds.WebDataset(str(tmp_path / "shard-000.tar"), shardshuffle=False)
    data = data.decode(ugicm_webdataset.handler(preference="machine")).to_tuple("ugic", "cls")
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method)
    for (image, label), number in zip(loader, range(3), strict=True):
        assert label == number
        assert torch.equal(image, codec.decompress(bitstreams[number], "machine", output="tensor"))


def test_webdataset_handler_leaves_other_entries_alone(bitstreams):
    assert ugicm_webdataset.handler()(".jpg", b"") is None
    human, machine = ugicm_webdataset.handler(["human", "machine"], "numpy")(".left.ugic", bitstreams[0])
    assert human.shape == machine.shape == (64, 64, 3)


def test_finetune_classifier_compares_sets_of_equal_size(tmp_path, make_image, run_script):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for seed in range(3):
            make_image(70, 64, seed).save(tmp_path / "photos" / name / f"{seed}.png")
    out = tmp_path / "out"
    done = run_script("scripts/finetune_classifier.py", "-d", tmp_path / "photos", "-o", out, "--epochs", 1,
                      "-m", f"timm/test_efficientnet={tmp_path / 'weights.pth'}", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "results.json").read_text())
    names = ["originals", "ugicm", "jpeg"]
    assert list(report["bytes"]) == list(report["accuracy"]) == names
    for name, suffix in zip(names, ("png", "ugic", "jpg")):
        files = sorted((out / name).rglob(f"*.{suffix}"))
        assert len(files) == 6 and sum(file.stat().st_size for file in files) == report["bytes"][name]
    with Image.open(out / "jpeg" / "cats" / "0.jpg") as image:
        assert image.size == (280, 256)
