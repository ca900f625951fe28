"""Weight averaging, and the output files of the checkpoint scripts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import CONFIGS, encode, small_model

from scripts.average_checkpoints import average, multiply
from ugicm.atomic import WriteError
from ugicm.checkpoints.native import check_output, load_model, read_metadata, save_model
from ugicm.errors import UsageError
from ugicm.models.ugicm import UGICM

SCRIPT = "scripts/average_checkpoints.py"


@pytest.fixture(scope="module")
def narrow_checkpoint(tmp_path_factory):
    """A model without detail channels, so that scripts/widen_checkpoint.py takes it, too."""
    torch.manual_seed(0)
    config = replace(CONFIGS["compact"], M=24, slice_widths=(8, 16), detail_width=0)
    path = tmp_path_factory.mktemp("narrow") / "narrow.safetensors"
    save_model(path, UGICM(config))
    return path


def test_average_matches_manual_computation():
    a, b = small_model(seed=0), small_model(seed=1)
    mean = average([a, b], [1, 3])
    for name, parameter in mean.named_parameters():
        wanted = 0.25 * a.get_parameter(name) + 0.75 * b.get_parameter(name)
        torch.testing.assert_close(parameter, wanted, rtol=1e-6, atol=1e-7)
    assert not torch.equal(a.g_s.stem.weight, mean.g_s.stem.weight)  # the first one is not changed


def test_average_of_equal_models_keeps_bitstreams():
    model, image, quality = small_model(seed=0), torch.rand(1, 3, 64, 64), torch.tensor([0.5])
    mean = average([model, model], [1, 1])
    assert model.prepare_for_coding().fingerprint == mean.prepare_for_coding().fingerprint
    assert encode(model, image, quality) == encode(mean, image, quality)


def test_multiply():
    model, before = small_model(seed=0), small_model(seed=0)
    count = multiply(model, "g_s.blocks_*.project.bias", 1.25)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert changed and len(changed) <= count and all(n.endswith("project.bias") for n in changed)
    torch.testing.assert_close(model.get_parameter(changed[0]), 1.25 * before.get_parameter(changed[0]))


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0]])
def test_average_rejects_invalid_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        average([small_model(seed=0), small_model(seed=1)], weights)


def test_average_script(run_script, checkpoint, other_checkpoint, tmp_path):
    out = tmp_path / "mean.safetensors"
    end = run_script(SCRIPT, checkpoint, other_checkpoint, "-o", out, "--multiply", "g_s.stem.bias=2")
    assert end.returncode == 0, end.stderr
    models = [load_model(path) for path in (checkpoint, other_checkpoint, out)]
    a, b, mean = (model.g_s.stem.bias for model in models)
    torch.testing.assert_close(mean, a + b)
    assert "g_s.stem.bias times 2" in read_metadata(out)["averaged"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--weights", "1"], "1 weights for 2 models"), (["--multiply", "nothing*=2"], "matches nothing*"),
     (["--multiply", "x"], "'x' is not PATTERN=FACTOR"),
     (["--multiply", "g_s.stem.bias=inf"], "values that are not finite: g_s.stem.bias")],
)  # fmt: skip
def test_average_script_rejects_invalid_options(run_script, checkpoint, other_checkpoint, tmp_path, options, complaint):
    end = run_script(SCRIPT, checkpoint, other_checkpoint, "-o", tmp_path / "mean.safetensors", *options)
    assert end.returncode == 2 and complaint in end.stderr
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in end.stderr


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("mean.pt", "name must end in .safetensors"), ("there.safetensors", "there.safetensors: exists; choose another"),
     ("there.safetensors/mean.safetensors", "there.safetensors is not a folder"),
     ("folder.safetensors", "it is a folder")],
)  # fmt: skip
@pytest.mark.parametrize("script", [SCRIPT, "scripts/convert_checkpoint.py", "scripts/widen_checkpoint.py"])
def test_scripts_reject_unusable_output_paths(narrow_checkpoint, photos, tmp_path, run_script, script, name, complaint):
    (tmp_path / "there.safetensors").write_text("mine")
    (tmp_path / "folder.safetensors").mkdir()
    options = {SCRIPT: ["-o", tmp_path / name], "scripts/convert_checkpoint.py": [tmp_path / name]}.get(
        script, [tmp_path / name, "-d", photos, "--width", "4"]
    )
    end = run_script(script, narrow_checkpoint, *options)
    assert end.returncode == 2 and complaint in end.stderr
    assert end.stderr.count("\n") == 1 and end.stderr.startswith(f"{Path(script).name}: ")
    assert (tmp_path / "there.safetensors").read_text() == "mine" and not (tmp_path / "mean.pt").exists()


def test_check_output_creates_no_folder(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b" / "mean.safetensors"
    check_output(path, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=f"no permission to write in {tmp_path}"):
        check_output(path, overwrite=False)


@pytest.mark.parametrize("script", [SCRIPT, "scripts/convert_checkpoint.py"])
def test_full_disk_exits_with_status_1(checkpoint, tmp_path, run_script, monkeypatch, script):
    def full(*_, **options):
        raise WriteError(tmp_path, OSError(28, "No space left on device"))

    monkeypatch.setattr("ugicm.checkpoints.native.save_model", full)
    end = run_script(script, checkpoint, *(["-o"] if script == SCRIPT else []), tmp_path / "mean.safetensors")
    assert end.returncode == 1 and "cannot be written: No space left" in end.stderr


def test_overwrite_replaces_an_existing_file(run_script, checkpoint, tmp_path):
    out = tmp_path / "there.safetensors"
    out.write_text("mine")
    end = run_script(SCRIPT, checkpoint, "-o", out, "--overwrite")
    assert end.returncode == 0, end.stderr
    load_model(out)


def test_average_rejects_different_configurations():
    with pytest.raises(ValueError, match="different configurations"):
        average([small_model("compact"), small_model("bmshj2018")], [1, 1])
