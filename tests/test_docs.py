"""Numbers in the documents are those of their results files."""


def test_tables_match_their_results_files(run_python):
    run = run_python("scripts/make_tables.py", "--check")
    assert run.returncode == 0, run.stdout + run.stderr
