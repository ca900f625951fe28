"""Streams written under one setting of the machine are read under others, in processes of their own; and what the
commands that check streams say of arguments that are wrong."""

import json
import sys
from importlib import util

import pytest
import torch
from conftest import ROOT
from small_models import small_model

from scripts.stress import large_images, portability
from ugicm.arguments import guarded
from ugicm.checkpoints.released import reference_name
from ugicm.codec import load
from ugicm.entropy.gaussian import log_spaced
from ugicm.errors import UgicmError


def test_released_checkpoints_get_the_same_tables_under_other_instruction_sets(photos, tmp_path):
    """Their tables are built on loading; a difference in one bit would make streams those of another model."""
    state = {reference_name(name): parameter.data for name, parameter in small_model("mlicpp").named_parameters()}
    torch.save({"state_dict": state}, tmp_path / "released.pth.tar")
    chosen = [s for s in portability.settings() if s.name in ("1 thread", "no vector instructions")]
    image = sorted(photos.rglob("*.png"))[:1]
    report = portability.check(str(tmp_path / "released.pth.tar"), image, [0.5], chosen, tmp_path)
    assert report["mismatches"] == 0 and report["streams"] == 4


def test_scales_are_those_of_compressai_but_for_the_last_bit():
    from compressai.models.base import get_scale_table

    found = torch.tensor(log_spaced(0.11, 256, 64))
    torch.testing.assert_close(found, get_scale_table(0.11, 256, 64), rtol=3e-7, atol=0)
    assert found[0] == torch.tensor(0.11)
    assert log_spaced(2.0, 4.0, 1) == [pytest.approx(2.0)]  # a checkpoint may ask for a single row


def test_streams_decode_under_other_threads_and_instruction_sets(checkpoint, photos, tmp_path):
    chosen = [s for s in portability.settings() if s.name in ("2 threads", "no vector instructions")]
    images = sorted(photos.rglob("*.png")) + sorted(photos.rglob("*.jpg"))
    report = portability.check(str(checkpoint), images, [0.2, 0.8], chosen, tmp_path)
    assert report["mismatches"] == 0
    assert report["streams"] == 4 * len(images) * 2
    assert 0 < report["closest_to_a_bound"] < 0.1


def test_a_process_that_fails_says_what_it_said(photos, tmp_path):
    with pytest.raises(UgicmError, match="no such file"):
        portability.check("absent.safetensors", [], [0.5], portability.settings()[:1], tmp_path)


def script(name: str):
    """A script as a module."""
    specification = util.spec_from_file_location(name, ROOT / "scripts" / "stress" / f"{name}.py")
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name, arguments", [
    ("check_portability", ["-d", "PHOTOS", "-c", "gone.safetensors"]),
    ("check_portability", ["-d", "gone"]),
    ("check_portability", ["-d", "PHOTOS", "--images", "0"]),
    ("check_portability", ["-d", "PHOTOS", "--quality", "7"]),
    ("check_portability", ["-d", "PHOTOS", "-c", "SMALL", "--python", "gone/python"]),
    ("check_large", ["-c", "gone.safetensors"]),
    ("check_large", ["-d", "gone"]),
    ("check_large", ["--size", "0x100"]),
    ("check_large", ["--tile", "100"]),
    ("check_concurrency", ["--quality", "7"]),
    ("check_concurrency", ["--device", "foo"]),
    ("check_concurrency", ["-d", "gone"]),
    ("fuzz_streams", ["-c", "gone.safetensors"]),
    ("fuzz_streams", ["--count", "0"]),
])
def test_wrong_arguments_are_no_findings(name, arguments, photos, checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = [{"PHOTOS": str(photos), "SMALL": str(checkpoint)}.get(argument, argument) for argument in arguments]
    main = script(name).main
    with pytest.raises(SystemExit) as end:
        sys.exit(guarded(lambda: main(given)))
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "error: " in last and arguments[-1] in last
    assert not (tmp_path / "experiments").exists()


def test_images_are_evenly_spread_and_results_say_which_model(checkpoint, tmp_path, monkeypatch, make_image):
    for number in range(7):
        make_image().save(tmp_path / f"{number}.png")
    report = {"versions": {}, "pairs": [], "streams": 0, "mismatches": 0, "closest_to_a_bound": 1.0}
    seen = []

    def check(path, images, *_, **__):
        seen.extend(image.name for image in images)
        return dict(report)

    monkeypatch.setattr(portability, "check", check)
    options = ["-c", str(checkpoint), "-o", str(tmp_path / "found.json")]
    assert script("check_portability").main(["-d", str(tmp_path), "--images", "4", *options]) == 0
    assert seen == ["0.png", "2.png", "4.png", "6.png"]
    assert json.loads((tmp_path / "found.json").read_text())["model"] == load(checkpoint).describe()

    monkeypatch.setattr(large_images, "check", lambda *_, **__: {"checks": [], "regions": []})
    assert script("check_large").main(options) == 0
    assert json.loads((tmp_path / "found.json").read_text())["model"] == load(checkpoint).describe()
