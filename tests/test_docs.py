"""Numbers in the documents are those of their results files."""

import re
import runpy
import subprocess

from conftest import ROOT

import ugicm
from ugicm import revision


def test_tables_match_their_results_files(run_script):
    run = run_script("scripts/make_tables.py", "--check")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_page_of_public_names_matches_their_docstrings(run_script):
    run = run_script("scripts/make_api.py", "--check")
    assert run.returncode == 0, run.stdout + run.stderr
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in ugicm.__all__ if name != "__version__" and f"### ugicm.{name}\n" not in text] == []


def test_the_table_of_training_shows_what_its_file_has():
    train = runpy.run_path(str(ROOT / "scripts" / "make_tables.py"))["train"]
    run = {"variant": "as configured", "device": "cpu", "threads": 1, "samples_per_s": 9.0,
           "slowest_samples_per_s": 8.0, "shares": {"data": 0.5}}  # fmt: skip
    heads = ["variant", "device", "threads", "samples per second", "data"]
    assert train({"runs": [run]}) == [heads, ["as configured", "cpu", "1", "9.00", "50 %"]]
    rows = train({"runs": [{**run, "fastest_samples_per_s": 9.5}], "same": {"bf16": "as configured"}})
    assert rows == [
        [*heads[:4], "slowest", "fastest", "data"], ["as configured = bf16", "cpu", "1", "9.00", "8.00", "9.50", "50 %"]
    ]  # fmt: skip


def test_results_that_are_written_do_not_make_the_code_look_changed(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x", *arguments], check=True)

    names = ["ugicm/revision.py", "docs/results/a.json", "README.md"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    monkeypatch.setattr(revision, "__file__", str(tmp_path / names[0]))
    seen = []
    for name in reversed(names):
        (tmp_path / name).write_text("2")
        seen.append(revision.revision())
    clean = seen[0]
    assert len(clean) == 12 and seen == [clean, clean, f"{clean}-dirty"]


def test_training_page_names_existing_code():
    """Names in the table from the paper to the code are defined in the file beside them."""
    text = (ROOT / "docs" / "training.md").read_text()
    pairs = re.findall(r"((?:`\w+`(?:, )?)+) in `(ugicm/[\w/]+\.py)`", text)
    assert len(pairs) >= 6
    for names, path in pairs:
        source = (ROOT / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), f"{name} is not in {path}"
