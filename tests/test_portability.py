"""Bitstreams decode in other environments, in processes of their own; and usage errors of the stress tools."""

import json
import sys

import pytest
import torch
from small_models import small_model

from scripts.stress import concurrency, fuzzing, large_images, portability
from ugicm.arguments import run_command
from ugicm.checkpoints.released import reference_name
from ugicm.codec import load
from ugicm.entropy.gaussian import log_spaced
from ugicm.errors import UgicmError


def test_released_checkpoints_have_the_same_tables_on_other_instruction_sets(photos, tmp_path):
    """Their tables are built on loading. A difference in one bit would change the fingerprint."""
    state = {reference_name(name): parameter.data for name, parameter in small_model("mlicpp").named_parameters()}
    torch.save({"state_dict": state}, tmp_path / "released.pth.tar")
    chosen = [s for s in portability.environments() if s.name in ("1 thread", "no vector instructions")]
    image = sorted(photos.rglob("*.png"))[:1]
    report = portability.check(str(tmp_path / "released.pth.tar"), image, [0.5], chosen, tmp_path)
    assert report["mismatches"] == 0 and report["streams"] == 4
    assert 0 < report["closest_to_a_bound"] < 0.1


def test_scale_table_equals_that_of_compressai_up_to_the_last_bit():
    get_scale_table = pytest.importorskip("compressai.models.base", reason="compares with CompressAI").get_scale_table
    found = torch.tensor(log_spaced(0.11, 256, 64))
    torch.testing.assert_close(found, get_scale_table(0.11, 256, 64), rtol=3e-7, atol=0)
    assert found[0] == torch.tensor(0.11)
    assert log_spaced(2.0, 4.0, 1) == [pytest.approx(2.0)]  # a checkpoint may ask for a single row


def test_bitstreams_decode_with_other_threads_and_instruction_sets(checkpoint, photos, tmp_path):
    """The control has too few bits for the operands of integer layers."""
    names = ("2 threads", "no vector instructions", "bfloat16 operands")
    chosen = [s for s in portability.environments() if s.name in names] + [portability.Environment("control", bits=4)]
    images = sorted(photos.rglob("*.png")) + sorted(photos.rglob("*.jpg"))
    report = portability.check(str(checkpoint), images, [0.2, 0.8], chosen, tmp_path)
    assert len(report["pairs"]) == 16 and report["streams"] == 16 * len(images) * 2
    for pair in report["pairs"]:
        assert bool(pair["mismatches"]) == ((pair["writer"] == "control") != (pair["reader"] == "control")), pair
    assert report["mismatches"] == sum(pair["mismatches"] for pair in report["pairs"])
    assert report["closest_to_a_bound"] is None


def test_failed_process_is_reported_with_its_error(photos, tmp_path):
    with pytest.raises(UgicmError, match="no such file"):
        portability.check("absent.safetensors", [], [0.5], portability.environments()[:1], tmp_path)


@pytest.mark.parametrize("tool, arguments", [
    (portability, ["-d", "PHOTOS", "-c", "gone.safetensors"]),
    (portability, ["-d", "gone"]),
    (portability, ["-d", "PHOTOS", "--images", "0"]),
    (portability, ["-d", "PHOTOS", "--quality", "7"]),
    (portability, ["-d", "PHOTOS", "-c", "SMALL", "--python", "gone/python"]),
    (large_images, ["-c", "gone.safetensors"]),
    (large_images, ["-d", "gone"]),
    (large_images, ["--size", "0x100"]),
    (large_images, ["--tile", "100"]),
    (concurrency, ["--quality", "7"]),
    (concurrency, ["--device", "foo"]),
    (concurrency, ["-d", "gone"]),
    (fuzzing, ["-c", "gone.safetensors"]),
    (fuzzing, ["--examples", "0"]),
])
def test_wrong_usage_exits_with_2(tool, arguments, photos, checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = [{"PHOTOS": str(photos), "SMALL": str(checkpoint)}.get(argument, argument) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        sys.exit(run_command(lambda: tool.main(given)))
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "error: " in last and arguments[-1] in last
    assert not (tmp_path / "experiments").exists()


def test_portability_spreads_images_evenly(checkpoint, tmp_path, monkeypatch, make_image):
    for number in range(7):
        make_image().save(tmp_path / f"{number}.png")
    report = {"versions": {}, "pairs": [], "streams": 0, "mismatches": 0, "closest_to_a_bound": 1.0}
    seen = []

    def check(path, images, *_):
        seen.extend(image.name for image in images)
        return dict(report)

    monkeypatch.setattr(portability, "check", check)
    output = tmp_path / "found.json"
    assert portability.main(["-d", str(tmp_path), "--images", "4", "-c", str(checkpoint), "-o", str(output)]) == 0
    assert seen == ["0.png", "2.png", "4.png", "6.png"]
    assert json.loads(output.read_text())["model"] == load(checkpoint).describe()


def test_large_images_report_describes_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "check", lambda *_: {"checks": [], "regions": []})
    output = tmp_path / "found.json"
    assert large_images.main(["-c", str(checkpoint), "-o", str(output)]) == 0
    assert json.loads(output.read_text())["model"] == load(checkpoint).describe()
