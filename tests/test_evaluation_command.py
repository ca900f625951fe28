"""tests/test.py: what it writes, that its numbers are those of the files, and how it continues."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import ugicm
from ugicm import images
from ugicm.evaluation import digests, metrics, results
from ugicm.evaluation import rate_distortion as evaluation


@pytest.fixture
def evaluate(tmp_path, capsys, checkpoint):
    """evaluate(*arguments) -> (exit status, stdout, stderr); experiments go below tmp_path."""

    def run(*arguments, model=checkpoint):
        options = ["-c", str(model)] if model else []
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
def test_as_users_run_it(place, run_python, run_script, checkpoint, tmp_path):
    samples = sorted(p.stem for p in (resources.files("ugicm") / "samples").iterdir() if p.name.endswith(".png"))
    assert len(samples) == 3
    options = ("-exp", tmp_path / "exp", "--gpu_id", 0, "-c", checkpoint)
    in_tests = place == "tests"
    done = run_python("test.py", *options, cwd=ROOT / "tests") if in_tests else run_script("tests/test.py", *options)
    assert done.returncode == 0, done.stderr
    document = check_experiment(tmp_path / "exp", samples, ugicm.load(checkpoint))
    assert set(document) == {"name", "description", "results", "meta", "per_image", "failed"}
    assert {"torch", "compressai"} <= set(document["meta"]["libraries"])
    assert document["meta"]["command"].endswith(f"-c {checkpoint}")
    assert document["meta"]["model"]["fingerprint"] == ugicm.load(checkpoint).fingerprint
    assert sorted(p.name for p in (tmp_path / "exp").iterdir()) == [
        "bitstream", "comparison.png", "human", "machine", "rd.png", "results.json"
    ]  # fmt: skip
    lines = done.stdout.splitlines()
    assert any(line.startswith("average") for line in lines)
    assert all(any(line.startswith(f"{name}.png") for line in lines) for name in samples)
    assert lines[-1] == f"written: {tmp_path / 'exp'}"


def test_experiments_go_into_the_checkout():
    text = (ROOT / "tests" / "test.py").read_text()
    assert '.parents[1] / "experiments")' in text


def test_a_data_set_keeps_its_tree_and_small_images_have_no_ms_ssim(evaluate, photos, tmp_path, checkpoint):
    status, out, err = evaluate("-exp", "mine", "-d", photos)
    assert (status, err) == (0, "")
    document = check_experiment(
        tmp_path / "experiments" / "mine", ["cats/c", "dogs/a", "dogs/b"], ugicm.load(checkpoint)
    )
    assert document["results"]["ms-ssim-rgb"] == [None]
    assert all(record["ms-ssim-rgb-machine"] is None for record in document["per_image"])
    assert results.read(tmp_path / "experiments" / "mine" / "results.json") == document


def test_several_qualities_give_rate_points(evaluate, tmp_path, make_image):
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
    assert len([line for line in out.splitlines() if line.startswith("average")]) == 3
    with Image.open(folder / "comparison.png") as sheet, Image.open(folder / "rd.png") as curves:
        assert sheet.width >= 3 * 200 and sheet.height >= 3 * 180
        assert min(curves.size) > 300
    # One row of the sheet is the original itself, pixel for pixel.
    original = make_image(200, 180)
    with Image.open(folder / "comparison.png") as sheet:
        assert sheet.crop((0, 22, 200, 22 + 180)).tobytes() == original.tobytes()


def test_an_interrupted_run_continues_and_a_finished_one_starts_over(evaluate, photos, tmp_path, monkeypatch):
    folder, measure, calls = tmp_path / "experiments" / "test", evaluation.measure, []

    def impatient(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(evaluation, "measure", impatient)
    status, _, err = evaluate("-d", photos)
    assert status == 130 and "continues" in err
    assert not (folder / "results.json").exists()
    with open(folder / "records.jsonl", "a") as journal:
        journal.write('["0.5 dogs/b.ugic", {"image": "dogs/b.ugic", "qua')  # as a killed run leaves it
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


def test_results_of_before_are_kept_beside_and_named(evaluate, photos, tmp_path, other_checkpoint):
    folder = tmp_path / "experiments" / "mine"
    previous, said = folder / "results.previous.json", "are kept in results.previous.json"
    status, out, _ = evaluate("-exp", "mine", "-d", photos / "cats", "--quality", 0.3)
    first = (folder / "results.json").read_bytes()
    assert status == 0 and said not in out and not previous.exists()
    for options, model in (((photos / "cats", "--quality", 0.8), other_checkpoint), ((photos,), other_checkpoint)):
        status, out, err = evaluate("-exp", "mine", "-d", *options, model=model)
        assert (status, err) == (0, "") and sum(said in line for line in out.splitlines()) == 1
        assert previous.read_bytes() == first
        first = (folder / "results.json").read_bytes()
    assert len(json.loads(first)["per_image"]) == len(list((folder / "human").rglob("*.png"))) == 3
    assert evaluate("-exp", "mine", "-d", photos, model=other_checkpoint)[0] == 0  # the same once more
    assert previous.read_bytes() == first

    # What has that name and is no results file of this command makes the folder one of somebody else's.
    previous.write_text("mine")
    assert evaluate("-exp", "mine", "-d", photos)[0] == 2
    assert previous.read_text() == "mine" and (folder / "human" / "cats" / "c.png").exists()


def test_help_says_what_becomes_of_earlier_results(evaluate, capsys):
    with pytest.raises(SystemExit, match="0"):
        evaluate("--help")
    assert "results.previous.json" in capsys.readouterr().out


@pytest.fixture
def interrupt(evaluate, monkeypatch):
    """interrupt(*arguments): a run that ends after its first image, as with Ctrl-C."""
    measure = evaluation.measure

    def once(*arguments):
        with monkeypatch.context() as patch:
            calls = []

            def impatient(*given):
                if calls:
                    raise KeyboardInterrupt
                calls.append(1)
                return measure(*given)

            patch.setattr(evaluation, "measure", impatient)
            assert evaluate(*arguments)[0] == 130

    return once


def test_an_interrupted_run_continues_at_another_revision(evaluate, interrupt, photos, tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "test"
    for revision in ("aaa", "aaa-dirty"):
        monkeypatch.setattr(results, "revision", lambda revision=revision: revision)
        interrupt("-d", photos)
    monkeypatch.setattr(results, "revision", lambda: "bbb")
    status, out, _ = evaluate("-d", photos)
    assert status == 0 and "continuing after 2 results" in out
    assert f"{folder}: begun at revision aaa-dirty, continued at bbb" in out.splitlines()
    meta = json.loads((folder / "results.json").read_text())["meta"]
    assert (meta["revision"], meta["earlier_revisions"]) == ("bbb", ["aaa", "aaa-dirty"])
    monkeypatch.setattr(results, "revision", lambda: "ccc")
    assert evaluate("-d", photos)[0] == 0
    assert "earlier_revisions" not in json.loads((folder / "results.json").read_text())["meta"]


def test_an_interrupted_run_that_is_given_up_is_said(evaluate, interrupt, photos, tmp_path):
    interrupt("-d", photos)
    status, out, _ = evaluate("-d", photos, "--quality", 0.3)
    assert status == 0 and "1 results of an interrupted run are dropped (other qualities)" in out


def test_an_interrupted_run_with_other_settings_starts_over(evaluate, photos, tmp_path, other_checkpoint, monkeypatch):
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


def test_only_what_an_experiment_made_is_cleared(tmp_path):
    for name in ("bitstream", "q0.3", "q1", "quarry", "humans"):
        (tmp_path / name).mkdir()
    evaluation._clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["humans", "quarry"]


def test_a_folder_that_is_no_experiment_is_left_alone(evaluate, photos, tmp_path):
    theirs = tmp_path / "experiments" / "holiday" / "human"
    theirs.mkdir(parents=True)
    (theirs / "me.png").write_bytes(b"")
    status, _, err = evaluate("-exp", "holiday", "-d", photos)
    assert status == 2 and "choose another -exp" in err
    assert (theirs / "me.png").exists()


@pytest.mark.parametrize(
    "name, text",
    [
        ("results.json", '{"mine": 1}'),
        ("results.json", '{"name": "n", "results": {"bpp": [1]}, "meta": {"ugicm": "0"}}'),
        ("results.json", "no json"),
        ("records.jsonl", '{"image": 1}\n'),
        ("records.jsonl", '{"settings": 1, "image": 2}\n'),
        ("records.jsonl", '["settings", {"image": 1}]\n'),
        ("records.jsonl", "no json"),
        ("records.jsonl", ""),
    ],
)
def test_results_of_something_else_make_no_experiment(name, text, evaluate, photos, tmp_path):
    theirs = tmp_path / "experiments" / "holiday"
    (theirs / "human").mkdir(parents=True)
    (theirs / "human" / "me.png").write_bytes(b"")
    (theirs / "rd.png").write_bytes(b"")
    (theirs / name).write_text(text)
    before = sorted(theirs.rglob("*"))
    status, _, err = evaluate("-exp", "holiday", "-d", photos)
    assert status == 2 and "choose another -exp" in err
    assert sorted(theirs.rglob("*")) == before and (theirs / name).read_text() == text


def test_foreign_results_beside_a_journal_are_kept(evaluate, photos, tmp_path):
    folder = tmp_path / "experiments" / "test"
    assert evaluate("-d", photos)[0] == 0
    own = json.loads((folder / "results.json").read_text())
    (folder / "records.jsonl").write_text(json.dumps(["settings", own["meta"]]) + "\n")
    (folder / "results.json").write_text('{"mine": 1}')
    assert evaluate("-d", photos)[0] == 2
    assert (folder / "results.json").read_text() == '{"mine": 1}' and (folder / "human" / "cats" / "c.png").exists()


def test_a_broken_image_is_named_and_does_not_stop_the_run(evaluate, photos, tmp_path):
    (photos / "cats" / "bad.png").write_bytes(b"no")
    status, out, err = evaluate("-d", photos, "--quality", 0.1, 0.9)
    assert status == 1
    assert err == f"test.py: {photos / 'cats' / 'bad.png'}: not an image that Pillow can read\n"
    document = json.loads((tmp_path / "experiments" / "test" / "results.json").read_text())
    assert len(document["per_image"]) == 6
    assert [failure["image"] for failure in document["failed"]] == [str(photos / "cats" / "bad.png")]


def test_a_image_that_fails_at_one_quality_is_in_no_average(evaluate, photos, tmp_path, monkeypatch):
    measure = evaluation.measure

    def short_of_memory(codec, image, outputs, quality, effort):
        if (image.width, quality) == (33, 0.9):
            raise MemoryError("too large")
        return measure(codec, image, outputs, quality, effort)

    monkeypatch.setattr(evaluation, "measure", short_of_memory)
    status, out, err = evaluate("-d", photos, "--quality", 0.1, 0.9)
    assert status == 1 and err == f"test.py: {photos / 'dogs' / 'b.jpg'}: too large\n"
    document = json.loads((tmp_path / "experiments" / "test" / "results.json").read_text())
    assert [(r["image"], r["quality"]) for r in document["per_image"]] == [
        ("cats/c.ugic", 0.1), ("dogs/a.ugic", 0.1), ("cats/c.ugic", 0.9), ("dogs/a.ugic", 0.9)
    ]  # fmt: skip
    assert document["description"].startswith("2 images of photos")
    low = [r["bpp"] for r in document["per_image"][:2]]
    assert document["results"]["bpp"][0] == pytest.approx(np.mean(low))


def test_folders_of_very_low_qualities_are_cleaned_like_others(evaluate, photos, tmp_path):
    folder = tmp_path / "experiments" / "test"
    assert evaluate("-d", photos, "--quality", 0.00001, 0.5)[0] == 0
    assert (folder / "q1e-05").is_dir()
    assert evaluate("-d", photos)[0] == 0
    assert not (folder / "q1e-05").exists() and (folder / "bitstream").is_dir()


def test_effort_is_measured_and_recorded(evaluate, photos, tmp_path, checkpoint):
    image = photos / "dogs" / "a.png"
    assert evaluate("-d", image, "--effort", 2)[0] == 0
    folder = tmp_path / "experiments" / "test"
    document = json.loads((folder / "results.json").read_text())
    assert document["meta"]["effort"] == 2
    refined = ugicm.load(checkpoint).compress(image, 0.5, effort=2)
    assert (folder / "bitstream" / "a.ugic").read_bytes() == refined


def test_what_cannot_be_done_is_one_line(evaluate, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, model, word in (
        (("-d", tmp_path / "gone"), None, "gone: no such"),
        (("-d", tmp_path / "empty"), None, "empty: no files"),
        (("-d", photos, "--quality", 2), None, "0 (small) to 1 (good)"),
        (("-d", photos), tmp_path / "gone.pth.tar", "gone.pth.tar: no such file"),
    ):
        status, _, err = evaluate(*arguments, model=model)
        assert status == 2 and word in err and len(err.splitlines()) == 1


def test_psnr_and_ms_ssim():
    black, gray = Image.new("RGB", (170, 161)), Image.new("RGB", (170, 161), (10, 10, 10))
    assert metrics.psnr(black, gray) == pytest.approx(20 * np.log10(25.5))
    assert metrics.psnr(black, black) == float("inf")
    assert metrics.ms_ssim(black, black) == pytest.approx(1)
    assert metrics.ms_ssim(black, gray) < 1
    assert metrics.ms_ssim(black.crop((0, 0, 160, 161)), gray.crop((0, 0, 160, 161))) is None
    with pytest.raises(ValueError, match="170x161 and 5x5"):
        metrics.psnr(black, Image.new("RGB", (5, 5)))


def test_results_files(tmp_path):
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


def test_a_journal_reads_what_it_can_and_goes_on(tmp_path):
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


def test_compressai_can_plot_our_results(evaluate, tmp_path, make_image):
    from compressai.utils.plot.__main__ import parse_json_file

    make_image(200, 180).save(tmp_path / "one.png")
    evaluate("-d", tmp_path / "one.png", "--quality", 0.1, 0.9)
    path = tmp_path / "experiments" / "test" / "results.json"
    for metric in ("psnr", "ms-ssim"):
        curve = parse_json_file(path, metric)
        assert curve["name"] == "ugicm compact" and len(curve["xs"]) == len(curve["ys"]) == 2


def test_a_data_sets_digest_depends_on_names_and_contents(tmp_path):
    for folder, name, content in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    a, b, c, d = (digests.tree_digest(sorted((tmp_path / f).iterdir()), tmp_path / f) for f in "abcd")
    assert a == b and len({a, c, d}) == 3
