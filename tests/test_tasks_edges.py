"""Edge detection: agreement with the edges of the originals."""

import json

import pytest
import torch

from ugicm.evaluation.tasks.edges import edge_agreement

DETECTOR = """
from torch import nn

class Detector(nn.Module):
    def forward(self, x):
        gray = x.mean(1, keepdim=True)
        return 4 * (nn.functional.pad(gray, (0, 1)).diff(dim=3).abs())

class Broken(nn.Module):
    def forward(self, x):
        return x.mean(1, keepdim=True) / 0 * 0
"""


def column(*numbers, width=9, height=6):
    edges = torch.zeros(1, 1, height, width, dtype=torch.bool)
    edges[..., list(numbers)] = True
    return edges


@pytest.mark.parametrize(
    ("original", "tested", "wanted"),
    [
        (column(2), column(2), 100),
        (column(2), column(3), 100),  # within a pixel
        (column(2), column(4), 0),
        (column(2), column(), 0),
        (column(2, 7), column(2), 100 * 2 * 0.5 / 1.5),  # half of the edges
        (column(2), column(2, 7), 100 * 2 * 0.5 / 1.5),  # half of what is found is right
        (column(), column(2), None),
    ],
)
def test_edge_agreement(original, tested, wanted):
    value = edge_agreement(original, tested)
    assert value == (None if wanted is None else pytest.approx(wanted))


@pytest.fixture
def detector(tmp_path):
    path = tmp_path / "detector.py"
    path.write_text(DETECTOR)
    return path


def test_edges_script(run_script, photos, detector, tmp_path):
    script, out = "scripts/eval_edges.py", tmp_path / "edges.json"
    arguments = ["-d", photos, "--detector", f"{detector}:Detector", "--device", "cpu"]
    end = run_script(script, *arguments)
    assert end.returncode == 0 and "edge agreement (detector)  100.00" in end.stdout, end.stderr
    end = run_script(script, *arguments, "--codec", "jpeg", "--quality", "10", "-o", out)
    assert end.returncode == 0, end.stderr
    document = json.loads(out.read_text())
    assert 0 < document["results"]["edge agreement (detector)"][0] < 100 and document["results"]["bpp"][0] > 0
    end = run_script(script, *arguments[:3], f"{detector}:Broken", "--device", "cpu")
    assert end.returncode == 1 and "detector: the network's outputs are not finite" in end.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("detector.py:nothing", "detector.py:nothing: AttributeError: "),
        ("gone.py:Detector", "gone.py:Detector: FileNotFoundError: "),
        ("detector.py", "detector.py': expected NAME, NAME=PATH or FILE.py:function"),
        ("canny", "canny: expected FILE.py:function"),
        ("detector.py:Detector:size=3", "detector.py:Detector:size=3: unknown option 'size'"),
    ],
)
def test_detectors_that_cannot_be_built_are_named(run_script, photos, detector, tmp_path, name, message):
    end = run_script("scripts/eval_edges.py", "-d", photos, "--detector", tmp_path / name)
    assert end.returncode == 2 and end.stderr.count("\n") == 1 and f"{tmp_path}/{message}" in end.stderr
