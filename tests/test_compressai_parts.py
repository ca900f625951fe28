"""CompressAI without its point clouds: quick to start, and still whole for who asks."""

import importlib
import subprocess
import sys

import pytest

from ugicm.entropy.factorized import register_unrun


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that counts how often it is run."""
    folder = tmp_path / "laden"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\nfrom . import heavy\nanswer = lambda: 'really'\n"
    )
    (folder / "light.py").write_text("from laden import answer\nWEIGHT = 1\n")
    (folder / "heavy.py").write_text("WEIGHT = 10\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    yield "laden"
    for name in [name for name in sys.modules if name.partition(".")[0] == "laden"]:
        del sys.modules[name]


def test_a_part_is_loaded_without_the_package(package):
    register_unrun(package, answer=lambda: "as if")
    light = importlib.import_module("laden.light")
    assert (light.WEIGHT, light.answer(), sys.runs) == (1, "as if", 0)
    assert "laden.heavy" not in sys.modules


def test_what_is_missing_runs_the_package_once(package):
    register_unrun(package, answer=lambda: "as if")
    laden = importlib.import_module(package)
    assert laden.heavy.WEIGHT == 10 and laden.answer() == "really"
    for _ in range(2):
        with pytest.raises(AttributeError, match="'laden' has no attribute 'nothing'"):
            _ = laden.nothing
    assert sys.runs == 1


def test_a_package_in_use_is_left_alone(package):
    laden = importlib.import_module(package)
    register_unrun(package, answer=lambda: "as if")
    assert sys.modules[package] is laden and laden.answer() == "really"


def test_the_codec_needs_no_point_clouds_and_leaves_compressai_whole():
    program = """
import sys
import ugicm
codec = ugicm.load()
heavy = {"torch_geometric", "pandas", "torch._dynamo", "compressai.models", "scipy.stats._stats_py"}
print(sorted(heavy & set(sys.modules)))
from scipy import stats
print(stats.norm.cdf(0))
import compressai
print(compressai.models.FactorizedPrior(8, 8).entropy_bottleneck.entropy_coder.name, compressai.__version__ > "1")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[]", "0.5", "ans True"], done.stderr
