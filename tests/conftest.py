"""Shared fixtures: small checkpoints, images, and functions that run commands and scripts."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side: one PyTorch thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="rewrite tests/golden with the current code before testing"
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Path of a small random compact model."""
    return _save_small(tmp_path_factory.mktemp("model") / "small.safetensors", seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory) -> Path:
    """Path of a model of the same architecture with other weights."""
    return _save_small(tmp_path_factory.mktemp("model") / "other.safetensors", seed=1)


def _save_small(path: Path, seed: int) -> Path:
    from small_models import small_model

    from ugicm.checkpoints.native import save_model

    save_model(path, small_model(seed=seed))
    return path


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory) -> Path:
    """Folder of the ONNX files of the small model."""
    return _export(tmp_path_factory.mktemp("exported"), str(checkpoint))


@pytest.fixture(scope="session")
def exported_shipped(tmp_path_factory) -> Path:
    """Folder of the ONNX files of the shipped model. To export it takes a minute."""
    return _export(tmp_path_factory.mktemp("exported_shipped"), "--half")


def _export(folder: Path, *options: str) -> Path:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra export")
    from ugicm.commands.main import main

    assert main(["export", *options, "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def make_image():
    """make_image(width, height, seed) -> smooth random RGB image."""

    def make(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def photos(tmp_path, make_image) -> Path:
    """A folder with three images in two subfolders, and a file that is not an image."""
    folder = tmp_path / "photos"
    (folder / "dogs").mkdir(parents=True)
    (folder / "cats").mkdir()
    make_image(64, 48, 1).save(folder / "dogs" / "a.png")
    make_image(33, 70, 2).save(folder / "dogs" / "b.jpg")
    make_image(20, 20, 3).save(folder / "cats" / "c.bmp")
    (folder / "labels.csv").write_text("a,dog\n")
    return folder


@pytest.fixture(scope="session")
def run_python():
    """run_python(*arguments, cwd=...) -> CompletedProcess of a new Python process, with outputs as text."""

    def run(*arguments: object, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.fixture
def run_script(monkeypatch, capsys):
    """run_script(path in the checkout, *arguments) -> CompletedProcess of a script that runs in this process."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [script, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return subprocess.CompletedProcess(command, end.value.code or 0, *capsys.readouterr())

    return run
