"""The report: continuation from the cache, agreement of its numbers, errors, and the page in a browser.

The codec is a fake: JPEG, darkened by preference.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from task_helpers import BRIGHT_DETECTOR
from test_codecs import JpegCodec

from ugicm.commands.main import main
from ugicm.errors import ConfigError
from ugicm.evaluation import bd_rate, codecs, results
from ugicm.evaluation.metrics import psnr
from ugicm.report import build, command, curves, datasets, html_page, tables

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class CountingCodec(JpegCodec):
    """The fake codec, counting its calls. It is interrupted at the call ``fail_at``."""

    def __init__(self):
        self.encoded = self.decoded = 0
        self.fail_at = None

    def compress(self, image, quality=0.5):
        self.encoded += 1
        if self.encoded == self.fail_at:
            raise KeyboardInterrupt
        return super().compress(image, quality)

    def decompress(self, data, preference):
        self.decoded += 1
        return super().decompress(data, preference)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Ten textured images of two classes, named by WordNet ids."""
    folder = tmp_path_factory.mktemp("data") / "birds"
    generator = np.random.default_rng(0)
    for index in range(10):
        place = folder / ("n01440764", "n01443537")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((180, 168), Image.Resampling.BICUBIC), dtype=float)
        noisy = smooth + generator.normal(scale=8, size=smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "w.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return f"squeezenet1_1={path}:resize=64:crop=64:label=random"


def fake_ugicm(patch: pytest.MonkeyPatch) -> CountingCodec:
    """Make the specification ``ugicm`` load the fake codec."""
    codec, load = CountingCodec(), codecs.load_codec

    def load_codec(text, device="cpu", preferences=(0, 1)):
        if text == "ugicm":
            return codecs.UgicmCodec(codec, "ugicm", "fake 1", preferences)
        return load(text, device, preferences)

    patch.setattr(codecs, "load_codec", load_codec)
    return codec


def report(options) -> int:
    """Run ``ugicm report``."""
    return main(["report", *map(str, options)])


@pytest.fixture
def codec(monkeypatch):
    return fake_ugicm(monkeypatch)


def arguments(images, classifier, output, *more) -> list[str]:
    return ["-d", str(images), "--codecs", "ugicm", "jpeg", "webp", "--classifiers", classifier, "--lpips", "none",
            "--qualities", "0.1", "0.4", "0.8", "--points", "4", "--viewer", "2",
            "--viewer-preferences", "0", "0.5", "1", "--device", "cpu", "-o", str(output), *map(str, more)]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread, as the started processes do: the last digits of scores depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory, images, classifier, one_thread):
    """A finished report, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        fake_ugicm(patch)
        assert report(arguments(images, classifier, folder)) == 0
    return folder


def test_results_agree_with_the_codecs(made, images):
    document = json.loads((made / "results.json").read_text())
    (section,) = document["sections"]
    assert section["images"] == 10 and [m["title"] for m in section["metrics"]] == [
        "psnr-rgb", "psnr-y", "ms-ssim-rgb", "top-1 (random)", "top-5 (random)", "agreement (random)",
    ]  # fmt: skip
    assert [c["name"] for c in section["curves"]] == ["ugicm human", "ugicm machine", "JPEG", "WebP"]
    human, machine, jpeg, webp = (c["results"] for c in section["curves"])
    images = [Image.open(path) for path in sorted(images.rglob("*.png"))]
    codec, rates, decibels = JpegCodec(), [], []
    for image in images:
        data = codec.compress(image, 0.4)
        rates.append(8 * len(data) / (image.width * image.height))
        decibels.append(psnr(image, codec.decompress(data, [0.0])[0]))
    assert human["bpp"][1] == machine["bpp"][1] == pytest.approx(np.mean(rates))
    assert (
        human["psnr-rgb"][1] == pytest.approx(np.mean(decibels)) and machine["psnr-rgb"][1] < human["psnr-rgb"][1] - 3
    )
    assert section["originals"]["agreement (random)"] == 100
    for curve in (jpeg, webp):  # the range of rates is that of ugicm, slightly wider
        assert curve["bpp"] == sorted(curve["bpp"]) and len(curve["bpp"]) >= 3
        assert curve["bpp"][-1] == pytest.approx(1.1 * human["bpp"][-1], rel=0.1)
    delta = next(
        d for d in section["deltas"] if (d["metric"], d["reference"], d["test"]) == ("psnr-rgb", "JPEG", "WebP")
    )
    expected = bd_rate.bd_rate(jpeg["bpp"], jpeg["psnr-rgb"], webp["bpp"], webp["psnr-rgb"])
    assert delta["rate"]["value"] == expected.value and delta["rate"]["low"] == expected.low
    dark = next(d for d in section["deltas"] if (d["metric"], d["test"]) == ("psnr-rgb", "ugicm machine"))
    assert dark["rate"]["value"] is None and dark["rate"]["note"]


def test_files_of_curves(made):
    paths = sorted((made / "curves" / "birds").glob("*.json"))
    assert [p.stem for p in paths] == ["JPEG", "WebP", "ugicm human", "ugicm machine"]
    document = json.loads(paths[2].read_text())
    images = document["per_image"]
    assert len(images["files"]) == 10 and len(images["top-1 (random)"]) == 3
    assert np.mean(images["psnr-rgb"], axis=1) == pytest.approx(document["results"]["psnr-rgb"], abs=1e-4)
    assert np.mean(images["bpp"], axis=1) == pytest.approx(document["results"]["bpp"], abs=1e-4)
    assert document["meta"]["codec"] == "fake 1" and document["meta"]["libraries"]
    parse_json_file = pytest.importorskip("compressai.utils.plot.__main__", reason="reads the file").parse_json_file
    read = parse_json_file(paths[2], "psnr")
    assert read["name"] == "ugicm human" and len(read["xs"]) == len(read["ys"]) == 3


def test_delta_cells():
    rate = {"value": -12.34, "interval": (-20.4, -5.0), "note": "narrow overlap"}
    assert tables._delta_cell({"rate": rate}) == "−12.3 % (−20 … −5) †"
    rough = {"value": -12.34, "interval": (-20.4, -5.0), "note": "rough interval: 4 images"}
    assert tables._delta_cell({"rate": rough}) == "−12.3 % (−20 … −5) ‡"
    assert tables._delta_cell({"rate": {"value": 3.0, "interval": None, "note": ""}}) == "+3.0 %"


@pytest.fixture(scope="module")
def plot_rd():
    """scripts/plot_rd.py as a module."""
    specification = importlib.util.spec_from_file_location("plot_rd", ROOT / "scripts" / "plot_rd.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


def test_markdown_and_plots(made, plot_rd, tmp_path):
    text = (made / "tables.md").read_text()
    assert "### BD-rate at equal psnr-rgb" in text and "| WebP |" in text and "no overlap" in text
    plots = sorted(p.name for p in (made / "plots").iterdir())
    assert "birds-psnr-rgb.png" in plots and "birds-top-1-random.png" in plots and len(plots) == 6
    with Image.open(made / "plots" / "birds-psnr-rgb.png") as image:
        assert image.width > 600
    assert text.splitlines()[2] == tables._LEGEND
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps({"name": "mbt2018", "results": {"bpp": [0.1, 0.5], "psnr": [27, 33], "ms-ssim": [0.9, 0.98]}})
    )
    files = [str(made / "results.json"), str(other), str(made / "curves" / "birds" / "JPEG.json")]
    assert plot_rd.main([*files, "-o", str(tmp_path / "rd.png")]) == 0
    assert plot_rd.main([*files, "-m", "ms-ssim", "-o", str(tmp_path / "ms.png")]) == 0
    assert (tmp_path / "rd.png").stat().st_size > 10_000 and (tmp_path / "ms.png").is_file()
    with pytest.raises(ConfigError, match="mbt2018 has no 'lpips'; available: bpp, psnr"):
        plot_rd.main([str(other), "-m", "lpips"])
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a results file"):
        plot_rd.main([str(tmp_path / "x.json")])


@pytest.mark.parametrize(
    "document, message",
    [
        ({"results": {"bpp": [0.1, 0.2], "psnr-rgb": [30]}}, "x: bits per pixel .* of equal length"),
        ({"results": {"bpp": 0.1, "psnr-rgb": 30}}, "must be lists of numbers"),
        ({"results": {"bpp": ["a", 0.2], "psnr-rgb": [30, 31]}}, "must be lists of numbers"),
        ({"results": {"bpp": [None, 0.2], "psnr-rgb": [30, 31]}}, "must be lists of numbers"),
        ({"results": {"bpp": [0.1], "psnr-rgb": [float("nan")]}}, "must be lists of numbers"),
        ({"results": {"bpp": [0.1], "psnr-rgb": [[30]]}}, "must be lists of numbers"),
        ({"results": [1]}, "not a results file"),
        ({"name": 5, "results": {"bpp": [0.1], "psnr-rgb": [30]}}, "not a results file"),
        ({"sections": 5}, "not a results file"),
        ({"sections": []}, "not a results file"),
        ({"sections": [{"curves": []}]}, "not a results file"),
        ({"sections": [{"name": "a"}]}, "not a results file"),
        ({"sections": [{"name": "a", "curves": [{"name": "b"}]}]}, "not a results file"),
        ({"sections": [{"name": "a", "curves": [{"name": "b", "results": 5}]}]}, "not a results file"),
        (5, "not a results file"),
        (None, "not a results file"),
    ],
)
def test_plot_rd_rejects_files_without_curves(document, message, plot_rd, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"x.json: .*{message}"):
        plot_rd.main([str(tmp_path / "x.json"), "-o", str(tmp_path / "x.png")])


def test_plot_shows_names_literally(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    names = ["_mine", "cost $5 or $6", r"$\nonsense$"]
    curves = [(name, [0.1, 0.2], [30 + i, 31 + i]) for i, name in enumerate(names)]
    curves.insert(1, ("nothing known", [0.1], [None]))
    tables.plot(tmp_path / "x.png", curves, r"psnr $\x$", title=r"a $\x$ b", original=30)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*names, "original"]
    texts = [*axes.get_legend().get_texts(), axes.title, axes.yaxis.label]
    assert not any(text.get_parse_math() for text in texts)


def test_plot_rd_distinguishes_curves_of_one_name(plot_rd, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a/results.json", "b/results.json", "c.json", "report.json")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"name": "ugicm compact", "results": {"bpp": [0.1], "psnr-rgb": [30]}}))
    curve = {"results": {"bpp": [0.1], "psnr-rgb": [30]}}
    names = ["ugicm compact", "JPEG"]
    sections = [{"name": "x", "curves": [{"name": name, **curve} for name in names]}]
    paths[-1].write_text(json.dumps({"sections": sections}))
    drawn = []
    monkeypatch.setattr(tables, "plot", lambda path, curves, *_: drawn.append([name for name, *_ in curves]))
    assert plot_rd.main([*map(str, paths), "-o", str(tmp_path / "rd.png")]) == 0
    assert plot_rd.main([str(paths[0]), str(paths[0])]) == 0
    assert drawn[0] == ["a/results", "b/results", "c", "report: ugicm compact", "JPEG"]
    assert drawn[1] == ["ugicm compact"] * 2


def test_original_scores_exclude_agreement(made, tmp_path, monkeypatch):
    document = json.loads((made / "results.json").read_text())
    (section,) = document["sections"]
    assert section["originals"]["agreement (random)"] == 100
    (line,) = (line for line in tables.markdown(document).splitlines() if line.startswith("Originals"))
    assert "agreement" not in line
    section["originals"]["top-1 (random)"] = 100.0
    assert "Originals: top-1 (random) 100.0, top-5" in tables.markdown(document)
    drawn = {}
    monkeypatch.setattr(tables, "plot", lambda path, curves, metric, title, line: drawn.update({metric: line}))
    tables.plots(document, tmp_path)
    assert drawn["top-1 (random)"] == 100 and drawn["agreement (random)"] is None


def test_interrupted_report_continues(made, images, classifier, codec, tmp_path, capsys):
    # Interrupted in the middle of the second rate point, with a truncated line in a journal.
    codec.fail_at = 15
    assert report(arguments(images, classifier, tmp_path)) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()
    journals = sorted((tmp_path / "cache" / "records").rglob("*.jsonl"))
    assert journals
    with open(journals[-1], "a") as file:
        file.write('["abc", {"psn')
    codec.fail_at, codec.encoded, codec.decoded = None, 0, 0
    assert report(arguments(images, classifier, tmp_path)) == 0
    assert codec.encoded == 30 - 14  # the bitstreams of finished images are cached
    assert codec.decoded < 30 + 2 * 2  # one decode per image without a record, and those of the viewer
    assert len(results.Journal(journals[-1]).records) == len(journals[-1].read_text().splitlines()) - 1
    first, again = (json.loads((folder / "results.json").read_text()) for folder in (made, tmp_path))
    assert first["sections"] == again["sections"]
    # A second run decodes for the viewer only. Another quality adds only its own work.
    codec.encoded = codec.decoded = 0
    assert report(arguments(images, classifier, tmp_path)) == 0
    assert codec.encoded == 0 and codec.decoded == 4
    more = [a if a != "0.8" else "0.6" for a in arguments(images, classifier, tmp_path, "--viewer", "0")]
    assert report([*more, "--bpp-range", "0.5", "1"]) == 0
    assert codec.encoded == 10


def test_cache_depends_on_model_and_evaluator(images, codec, tmp_path):
    from ugicm.evaluation.tasks.base import Item
    from ugicm.evaluation.tasks.fidelity import FidelityEvaluator

    items = [Item(p.name, p) for p in sorted(images.rglob("*.png"))[:2]]
    dataset = datasets.Dataset("x", items, [FidelityEvaluator()], images).read()
    cache = curves.Cache(tmp_path)
    for expected, identity in ((2, "model a"), (2, "model a"), (4, "model b")):
        cached = curves.CachedCodec(codecs.UgicmCodec(codec, "ugicm", identity), cache)
        curves.measure_point(dataset, cached, 0.5, cache)
        assert codec.encoded == expected
    dataset.evaluators[0].identity = "other"
    curves.measure_point(dataset, cached, 0.5, cache)
    assert codec.encoded == 4 and codec.decoded == 6  # bitstreams are kept, the images are scored again
    human, machine = curves.collect(dataset, cached, [0.5], cache)
    assert (human.name, machine.name) == ("ugicm human", "ugicm machine")


def test_report_of_two_checkpoints(checkpoint, other_checkpoint, make_image, tmp_path):
    """Two real models at three preferences."""
    import ugicm

    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(2):
        make_image(70, 64, index).save(folder / f"{index}.png")
    codecs = ["--codecs", f"ugicm={checkpoint}:label=A", f"ugicm={other_checkpoint}:label=B", "jpeg"]
    output = tmp_path / "r"
    options = ["--qualities", 0, 1, "--preferences", 0, 0.25, 1, "--points", 2, "--lpips", "none", "--viewer", 1]
    assert report(["-d", str(folder), *codecs, *options, "--device", "cpu", "-o", str(output)]) == 0
    (section,) = json.loads((output / "results.json").read_text())["sections"]
    names = [f"{codec} {preference}" for codec in "AB" for preference in ("human", "preference 0.25", "machine")]
    assert [curve["name"] for curve in section["curves"]] == [*names, "JPEG"]
    first, other = section["curves"][0], section["curves"][3]
    assert first["identity"] != other["identity"] and ugicm.__version__ in first["identity"]
    codec, image = ugicm.load(checkpoint), Image.open(folder / "0.png")
    sizes = [len(codec.compress(Image.open(folder / f"{i}.png"), 1)) for i in range(2)]
    assert first["results"]["bpp"][-1] == pytest.approx(8 * np.mean(sizes) / (70 * 64))
    assert max(path.stat().st_size for path in (output / "cache").rglob("*.ugic")) >= max(sizes)
    assert image.size == (70, 64)


def test_errors_come_before_measuring(images, classifier, codec, tmp_path, capsys, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def fails(message, *more, data=images, classifier=classifier):
        assert report(arguments(data, classifier, tmp_path / "r", *more)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        lines = [line for line in lines if not line.startswith("Downloading:")]  # printed by torch 2.6
        assert len(lines) == 1 and message in lines[0], lines
        assert codec.encoded == 0 and not (tmp_path / "r").exists()

    fails("all of whose images are measured; choose another folder", "--cache", images / "cache")
    fails("0.3 is not one of --qualities 0.1 0.4 0.8", "--viewer-qualities", 0.3)
    fails("--viewer-datasets: cats not found; available: ", "--viewer-datasets", "cats")
    fails("1 0.5 is not a range", "--bpp-range", 1, 0.5)
    fails("resnet18=PATH", classifier="resnet18")
    fails("alex=PATH", "--lpips", "alex")
    fails("unknown codec 'bpg'", "--codecs", "ugicm", "bpg")
    fails("two codecs have the name JPEG: set a name with :label=NAME", "--codecs", "jpeg", "jpeg:subsampling=4:4:4")
    fails("two codecs have the name a-b: set a name", "--codecs", "jpeg:label=a/b", "jpeg:label=a-b")  # file names
    fails("two networks have the name fidelity: set a name", classifier=classifier.replace("random", "fidelity"))
    fails("no such folder", data=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    fails("no files to work on", data=tmp_path / "empty")
    fails("device 'foo' cannot be used", "--device", "foo")
    for option in (["--limit", "-3"], ["--points", "x"], ["--viewer", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            report(arguments(images, classifier, tmp_path / "r", *option))
        assert "expected an integer" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        report(arguments(images, classifier, tmp_path / "r", "--qualities", 1.5))
    assert "expected a number from 0 to 1, got 1.5" in capsys.readouterr().err
    fails("two folders are called birds", "-d", images, images)
    for name in (tmp_path / "out", "..", ".", "", "a/b", "a/"):
        fails("cannot name a folder of the report; give -d NAME=DIR, NAME without /", data=f"{name}={images}")
    fails("--classifiers: no folder has labels", data=images / "n01440764")
    fails("not a COCO annotation file", "--coco", _write(tmp_path / "x.json", "{}"))
    truth = {"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}], "annotations": [], "categories": []}
    fails("its images are in none of the folders", "--coco", _write(tmp_path / "c.json", json.dumps(truth)))


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_missing_weights_and_unreadable_images_are_noted(images, codec, tmp_path, monkeypatch, capsys):
    import urllib.error
    import urllib.request

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    data = tmp_path / "data"
    shutil.copytree(images, data)
    bad = sorted(data.rglob("*.png"))[3]
    bad.write_bytes(bad.read_bytes()[:60])
    status = report(["-d", f"some={data}", "--codecs", "jpeg", "--points", "2", "--device", "cpu", "--limit", "4",
                          "-o", str(tmp_path / "r")])  # fmt: skip
    assert status == 1 and bad.name in capsys.readouterr().err
    document = json.loads((tmp_path / "r" / "results.json").read_text())
    notes = " ".join(document["notes"])
    assert "LPIPS was not measured" in notes and "alex=PATH" in notes and "urlopen" not in notes
    assert "accuracy was not measured" in notes and "resnet101=PATH" in notes and bad.name in notes
    assert document["sections"][0]["name"] == "some" and document["sections"][0]["images"] == 3
    assert all(note.split(":")[0] in (tmp_path / "r" / "tables.md").read_text() for note in document["notes"])


def test_images_that_fail_are_left_out_of_all_curves(codec, tmp_path, capsys, monkeypatch):
    """Images that a codec or network fails on, too small for a metric, or of names that are not text, end nothing."""
    data = tmp_path / "data"
    data.mkdir()
    code = BRIGHT_DETECTOR.replace("for image in images]", "for image in images if image.shape[1] != 171]")
    (tmp_path / "network.py").write_text(code)
    sizes = {"a": (180, 170), "b": (171, 180), "small": (90, 100), "network": (200, 171), "codec": (200, 166)}
    for name, size in sizes.items():
        Image.effect_noise(size, 90).convert("RGB").save(data / f"{name}.png")
    try:
        os.rename(data / "b.png", os.fsencode(data) + b"/caf\xe9.png")
    except OSError:
        pass  # this file system has no such names
    decompress = codec.decompress

    def fail(stream, preference):
        images = decompress(stream, preference)
        if images[0].height == 166:
            raise MemoryError("too large")
        return images

    monkeypatch.setattr(codec, "decompress", fail)
    options = ["-d", data, "--codecs", "ugicm", "jpeg", "--qualities", 0.2, 0.6, "--points", 2, "--lpips", "none",
               "--detectors", f"{tmp_path / 'network.py'}:build", "--viewer", 1, "--device", "cpu"]  # fmt: skip
    assert report([*options, "-o", tmp_path / "r"]) == 1
    err = capsys.readouterr().err
    assert "left out: codec.png: " in err and "too large" in err and "left out: network.png: network: " in err
    document = json.loads((tmp_path / "r" / "results.json").read_text())
    (section,) = document["sections"]
    assert section["images"] == 3
    titles = [metric["title"] for metric in section["metrics"]]
    assert titles[-2:] == ["mask agreement (network)", "box agreement (network)"]
    assert section["originals"] == {"mask agreement (network)": None, "box agreement (network)": None}
    assert "data: ms-ssim-rgb is averaged over 2 of 3 images: the others do not have it" in document["notes"]
    for curve in section["curves"]:
        saved = json.loads((tmp_path / "r" / "curves" / "data" / f"{curve['name']}.json").read_text())
        images = saved["per_image"]
        assert len(images["files"]) == 3
        assert np.mean(images["bpp"], 1) == pytest.approx(curve["results"]["bpp"], abs=1e-4)
        small = images["files"].index("small.png")
        assert [row[small] for row in images["ms-ssim-rgb"]] == [None] * len(curve["settings"])
    assert not any(value is None for row in images["mask agreement (network)"] for value in row)


def test_report_command_is_light_and_reads_argument_files(run_python, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_report_command(parser.add_subparsers())
    args = parser.parse_args(["report", "-d", "x", "-o", "y"])
    assert args.command is command.run and args.codecs is None
    done = run_python(
        "-c", "import sys, ugicm.report.command; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
    (tmp_path / "all.args").write_text("# a comment\n-d 'a folder' --codecs jpeg\n")
    done = run_python("-m", "ugicm", "report", f"@{tmp_path / 'all.args'}", "-o", tmp_path / "r")
    assert done.returncode == 2 and done.stderr == "ugicm report: error: a folder: no such folder\n"
    (tmp_path / "bad.args").write_text("-d 'a folder\n")
    for name, message in (("bad", "-d 'a folder: No closing quotation"), ("gone", "No such file")):
        with pytest.raises(SystemExit, match="2"):
            report([f"@{tmp_path / name}.args"])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        report(["--help"])
    assert "ugicm report @docs/results.args" in capsys.readouterr().out


def test_argument_file_of_docs(capsys):
    parser = argparse.ArgumentParser()
    command.add_report_command(parser.add_subparsers())
    args = parser.parse_args(["report", f"@{ROOT / 'docs' / 'results.args'}"])
    assert len(args.dataset) == 3 and len(args.classifiers) == 2 and args.output == "docs/report"


def test_number_format_and_axis_labels():
    assert tables.number(None, "psnr-rgb") == "–"
    assert (
        tables.number(0.98765, "ms-ssim-rgb") == "0.9877" and tables.number(31.337, "psnr-rgb") == "31.34"
    )
    labels = {
        "top-1 (x)": "top-1 (x), %", "mask AP50 (x)": "mask AP50 (x), %", "mIoU (x)": "mIoU (x), %",
        "psnr-rgb-machine": "psnr-rgb-machine (dB)", "log-loss (x)": "log-loss (x), nats (lower is better)",
        "encoding_time": "encoding_time, s", "bytes": "bytes",
    }  # fmt: skip
    assert {metric: tables.axis_label(metric) for metric in labels} == labels


# The page, in a browser


def test_default_codecs_are_those_available(monkeypatch):
    def load_codec(text, *_):
        if text in ("jxl", "zoo/bmshj2018-hyperprior"):
            raise ConfigError(f"{text}: not installed")
        return codecs.PillowCodec("jpeg", text, {})

    monkeypatch.setattr(codecs, "load_codec", load_codec)
    notes = []
    options = argparse.Namespace(codecs=None, preferences=[0, 1])
    loaded = build._load_codecs(options, "cpu", notes)
    assert [codec.label for codec in loaded] == ["ugicm", "jpeg", "webp", "avif"]
    assert notes[0] == "jxl was not measured: jxl: not installed" and len(notes) == 2
    options.codecs = ["jxl"]
    with pytest.raises(ConfigError, match="not installed"):
        build._load_codecs(options, "cpu", notes)


def test_page_escapes_title():
    name = "</script><!--<script>alert(1)"
    text = html_page.page({"name": name, "sections": []}, [])
    assert "alert(1)" in text and name not in text and "<!--<script>" not in text


def test_page_makes_no_requests(made):
    text = (made / "index.html").read_text()
    assert "default-src 'none'" in text and "@@" not in text
    outside = text.split('<script type="application/json"')[0] + text.split("</script>", 1)[1]
    for mark in (' src="http', "@import", "<iframe", "fetch(", "XMLHttpRequest"):
        assert mark not in outside


def test_page_data_round_trips(made):
    document = json.loads((made / "results.json").read_text())
    document["notes"] = ["bad<!--.png was left out", "</script><script>alert(1)</script>", "a\u2028\\u003c & \"b\""]
    text = html_page.page(document, [None])
    data = text.split('<script type="application/json"')[1].split(">", 1)[1].split("</script>")[0]
    read = json.loads(data)
    assert "<" not in data and {key: read[key] for key in document} == document


def test_tables_escape_bars(made):
    document = json.loads((made / "results.json").read_text())
    text = json.dumps(document).replace('"JPEG"', '"J|P"').replace("(random)", "(a|b)")
    for table in tables.markdown(json.loads(text)).split("\n\n"):
        if table.startswith("|"):
            rows = [line.replace("\\|", "") for line in table.splitlines()]
            assert len({row.count("|") for row in rows}) == 1
    assert "| J\\|P |" in tables.markdown(json.loads(text))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, made):
    """The page, with its requests and console messages."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.requests, page.messages = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("console", lambda message: page.messages.append(message.text))
    page.goto((made / "index.html").as_uri())
    page.wait_for_selector("#viewer-0 img")
    yield page
    page.close()


def test_page_renders_without_requests(opened, made):
    assert opened.messages == []
    assert opened.locator("#home").count() == 0 and "Curves called human and machine" in opened.inner_text("header")
    assert opened.locator(".plot").count() == 6
    assert opened.locator(".plot").first.locator("polyline").count() == 4
    assert "[object" not in opened.inner_text("body") and "undefined" not in opened.inner_text("body")
    table = opened.locator("table.deltas").inner_text()
    document = json.loads((made / "results.json").read_text())
    delta = next(d for d in document["sections"][0]["deltas"]
                 if (d["metric"], d["reference"], d["test"]) == ("psnr-rgb", "JPEG", "WebP"))  # fmt: skip
    assert f"{delta['rate']['value']:.1f} %".replace("-", "−") in table and "no overlap" in table
    opened.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert all(url.startswith("data:") for url in opened.requests[1:])
    # The content security policy of the page refuses requests of scripts.
    refused = "fetch('http://127.0.0.1:9/').then(() => 'sent').catch(() => 'refused')"
    assert opened.evaluate(refused) == "refused"
    assert any("Content Security Policy" in text for text in opened.messages)


def test_slider_selects_preference(opened):
    pane, slider = opened.locator("#viewer-0 .pane.preference"), opened.locator("#viewer-0 input.preference")

    def brightness() -> float:
        opened.wait_for_function("[...document.images].every(i => i.complete)")
        return pane.locator("img").evaluate(
            """image => { const c = document.createElement('canvas'); c.width = c.height = 8;
            const p = c.getContext('2d'); p.drawImage(image, 0, 0, 8, 8);
            return [...p.getImageData(0, 0, 8, 8).data].filter((v, i) => i % 4 < 3).reduce((a, b) => a + b) / 192; }"""
        )

    levels = []
    for step, name in enumerate(("preference 0 (human)", "preference 0.5", "preference 1 (machine)")):
        slider.fill(str(step))
        assert name in pane.inner_text() and "same file" in pane.inner_text()
        levels.append(brightness())
    assert levels[0] > levels[1] + 5 > levels[2] + 10  # the fake codec darkens with preference
    assert "(machine)" in opened.locator("#viewer-0 output").inner_text()
    slider.focus()
    opened.keyboard.press("ArrowLeft")
    assert "preference 0.5" in pane.inner_text()


def test_viewer_selects_images_qualities_and_codecs(opened):
    viewer = opened.locator("#viewer-0")
    first = viewer.locator(".original img").get_attribute("src")
    rate = viewer.locator(".human figcaption").inner_text()
    viewer.locator("select.pick").select_option("1")
    assert viewer.locator(".original img").get_attribute("src") != first
    viewer.locator("select.pick").select_option("0")
    viewer.locator("select.point").select_option("1")
    assert viewer.locator(".human figcaption").inner_text() != rate
    baseline = viewer.locator(".pane.baseline")
    assert "WebP at nearest size" in baseline.inner_text()
    assert baseline.locator("img").get_attribute("src").startswith("data:image/webp")
    viewer.locator("select.baseline").select_option("0")
    assert "JPEG at nearest size" in baseline.inner_text()
    size, baseline_size = (
        int(viewer.locator(f".{name} figcaption").inner_text().split(" bytes")[0].split("\n")[-1].replace(",", ""))
        for name in ("human", "baseline")
    )
    assert baseline_size == pytest.approx(size, rel=0.1)
    assert viewer.locator(".right, .wrong").count() == 4


def test_magnifier_shows_the_same_place_in_all_images(opened):
    viewer = opened.locator("#viewer-0")
    viewer.scroll_into_view_if_needed()
    box = viewer.locator(".human img").bounding_box()
    opened.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    lenses = viewer.locator(".lens").evaluate_all("all => all.map(l => ({...l.style, shown: l.style.display}))")
    assert [lens["shown"] for lens in lenses] == ["block"] * 4
    assert len({lens["backgroundPosition"] for lens in lenses}) == 1
    assert {lens["backgroundSize"] for lens in lenses} == {"540px 504px"}  # 180x168, three times
    viewer.locator(".zoom").fill("6")
    opened.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    assert viewer.locator(".lens").first.evaluate("l => l.style.backgroundSize") == "1080px 1008px"
    opened.mouse.move(5, 5)
    assert viewer.locator(".lens").first.evaluate("l => l.style.display") == "none"


def test_plots_show_points_and_hide_curves(opened, made):
    (section,) = json.loads((made / "results.json").read_text())["sections"]
    plot = opened.locator(".plot[data-metric='psnr-rgb']")
    plot.locator("svg").focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    tip = plot.locator(".tip").inner_text()
    human = section["curves"][0]["results"]
    assert "ugicm human" in tip and f"{human['bpp'][1]:.4f} bpp" in tip and f"{human['psnr-rgb'][1]:.2f} dB" in tip
    opened.keyboard.press("ArrowDown")
    assert "ugicm machine" in plot.locator(".tip").inner_text()
    opened.keyboard.press("Escape")
    assert plot.locator(".tip").is_hidden()
    point = (
        plot.locator("svg polyline")
        .nth(2)
        .evaluate("l => { const p = l.points[0], m = l.getScreenCTM(); return [m.a * p.x + m.e, m.d * p.y + m.f]; }")
    )
    opened.mouse.move(point[0] + 4, point[1] - 3)
    assert "JPEG" in plot.locator(".tip").inner_text()
    opened.locator(".legend button", has_text="JPEG").click()
    assert plot.locator("polyline").count() == 3
    opened.locator(".legend button", has_text="JPEG").click()
    opened.locator(".legend button.log").click()
    assert plot.locator("polyline").count() == 4 and opened.messages == []
    # Comparisons in the other direction, and of a noisy score, with its method and interval.
    opened.locator("select[aria-label=kind]").select_option("score")
    assert " dB" in opened.locator("table.deltas").inner_text()
    opened.locator("select[aria-label=score]").select_option("3")
    assert "made monotone by least squares" in opened.locator("main").inner_text()
