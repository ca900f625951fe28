"""Output files of scripts/convert_checkpoint.py."""

from __future__ import annotations

import os

import pytest

from ugicm.atomic import WriteError
from ugicm.checkpoints.native import check_output, load_model
from ugicm.errors import UsageError

SCRIPT = "scripts/convert_checkpoint.py"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("out.pt", "name must end in .safetensors"), ("there.safetensors", "there.safetensors: exists; choose another"),
     ("there.safetensors/out.safetensors", "there.safetensors is not a folder"),
     ("folder.safetensors", "it is a folder")],
)  # fmt: skip
def test_unusable_output_paths_are_rejected(checkpoint, tmp_path, run_script, name, complaint):
    (tmp_path / "there.safetensors").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    end = run_script(SCRIPT, checkpoint, tmp_path / name)
    assert end.returncode == 2 and complaint in end.stderr
    assert end.stderr.count("\n") == 1 and end.stderr.startswith("convert_checkpoint.py: ")
    assert (tmp_path / "there.safetensors").read_text() == "mine" and not (tmp_path / "out.pt").exists()


def test_check_output_creates_no_folder(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b" / "out.safetensors"
    check_output(path, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=f"no permission to write in {tmp_path}"):
        check_output(path, overwrite=False)


def test_full_disk_exits_with_status_1(checkpoint, tmp_path, run_script, monkeypatch):
    def full(*_, **options):
        raise WriteError(tmp_path, OSError(28, "No space left on device"))

    monkeypatch.setattr("ugicm.checkpoints.native.save_model", full)
    end = run_script(SCRIPT, checkpoint, tmp_path / "out.safetensors")
    assert end.returncode == 1 and "cannot be written: No space left" in end.stderr


def test_overwrite_replaces_an_existing_file(run_script, checkpoint, tmp_path):
    out = tmp_path / "there.safetensors"
    out.write_text("mine")
    end = run_script(SCRIPT, checkpoint, out, "--overwrite")
    assert end.returncode == 0, end.stderr
    load_model(out)

