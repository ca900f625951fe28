"""scripts/compare_runs.py: rates of training runs at equal distortion."""

import json

import pytest
import yaml

from scripts.compare_runs import main
from ugicm.errors import UgicmError


def make_run(folder, name, points, step=100):
    run = folder / name
    run.mkdir()
    values = {f"{point}/{key}": value for point, pair in points.items() for key, value in zip(("loss", "bpp"), pair)}
    event = {"event": "validation", "step": step, "minutes": 2.0, "loss": 1.0, "bpp": 0.5, "psnr": 30.0, **values}
    (run / "metrics.jsonl").write_text(
        "\n".join(json.dumps(e) for e in ({"event": "start"}, {**event, "step": 0}, event))
    )
    (run / "config.yaml").write_text(yaml.safe_dump({"optim": {"lr": 1e-3}, "data": {"batch": 8}}))
    return str(run)


def test_relative_rate_is_the_mean_over_operating_points(tmp_path, capsys):
    first = make_run(tmp_path, "first", {"q0/b0": (0.5, 0.2), "q1/b0": (2.0, 1.0)})
    other = make_run(tmp_path, "other", {"q0/b0": (0.48, 0.3), "q1/b0": (2.05, 1.1)}, step=50)
    assert main([first, other, "-o", str(tmp_path / "results" / "x.json")]) == 0
    rows = json.loads((tmp_path / "results" / "x.json").read_text())["runs"]
    assert [row["relative rate"] for row in rows] == [0.0, pytest.approx((-10 + 5) / 2)]
    assert [row["samples"] for row in rows] == [800, 400]
    assert [step for step, _ in rows[1]["curve"]] == [0, 50]
    assert "other" in capsys.readouterr().out


def test_runs_must_have_the_same_points(tmp_path):
    first = make_run(tmp_path, "first", {"q0/b0": (0.5, 0.2)})
    other = make_run(tmp_path, "other", {"q1/b0": (0.5, 0.2)})
    with pytest.raises(UgicmError, match="validated at different points"):
        main([first, other])
