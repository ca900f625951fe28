"""Numbers in the documents are those of their results files."""

import runpy

from conftest import ROOT


def test_tables_match_their_results_files(run_script):
    run = run_script("scripts/make_tables.py", "--check")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_table_of_training_shows_what_its_file_has():
    train = runpy.run_path(str(ROOT / "scripts" / "make_tables.py"))["train"]
    run = {"variant": "as configured", "device": "cpu", "threads": 1, "samples_per_s": 9.0,
           "slowest_samples_per_s": 8.0, "shares": {"data": 0.5}}  # fmt: skip
    heads = ["variant", "device", "threads", "samples a second", "data"]
    assert train({"runs": [run]}) == [heads, ["as configured", "cpu", "1", "9.00", "50 %"]]
    rows = train({"runs": [{**run, "fastest_samples_per_s": 9.5}], "same": {"bf16": "as configured"}})
    assert rows == [
        [*heads[:4], "slowest", "fastest", "data"], ["as configured = bf16", "cpu", "1", "9.00", "8.00", "9.50", "50 %"]
    ]  # fmt: skip
