"""What a type checker says about code that uses the package."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

CLIENT = """
from pathlib import Path
import numpy as np
from PIL import Image
import torch
import ugicm

codec: ugicm.Codec = ugicm.load()
image = Image.open("a.png")
data: bytes = codec.compress(image, quality=0.5)
human, machine = codec.decompress(data, ["human", "machine"])
reveal_type(human)
reveal_type(codec.decompress(data, preference=0.3))
reveal_type(codec.decompress(Path("a.ugic"), region=(128, 64, 256, 256)))
reveal_type(codec.decompress(data, np.zeros((2, 2), np.float32)))
reveal_type(codec.decompress([data, "b.ugic"], "machine"))
reveal_type(codec.decompress([data], [0.0, 1.0]))
pieces: list[bytes] = codec.compress(["a.png", Path("b.png"), image, b"..."], effort=3)
more: list[bytes] = codec.compress(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
array: np.ndarray = codec.decompress(data, output="numpy")
batch: torch.Tensor = codec.model.synthesize(torch.zeros(1), torch.zeros(1), torch.zeros(1))
"""
REVEALED = ["Image", "Image", "Image", "Image", "list[Image]", "list[list[Image]]"]
WRONG = """
import ugicm

codec = ugicm.load()
codec.compress("a.png", qualty=0.5)
text: str = codec.compress("a.png")
codec.decompress(b"", output="jpeg")
codec.decompress(3)
"""


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """check(code) -> lines of mypy about a program that uses the package."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("client")
    (folder / "mypy.ini").write_text("[mypy]\n[mypy-ugicm.*]\nfollow_imports = silent\n")

    def run(code: str) -> list[str]:
        (folder / "client.py").write_text(code)
        command = [sys.executable, "-m", "mypy", "--no-error-summary", "client.py"]
        environment = {**os.environ, "MYPYPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        return done.stdout.splitlines()

    return run


def test_a_program_that_uses_the_package_has_types(check):
    lines = check(CLIENT)
    assert not [line for line in lines if "error" in line]
    revealed = [line.partition('"')[2].rstrip('"').replace("PIL.Image.", "") for line in lines]
    assert [text.replace("builtins.", "") for text in revealed] == REVEALED


def test_a_type_checker_finds_mistakes(check):
    lines = check(WRONG)
    assert {line.split(":")[1] for line in lines if ": error:" in line} == {"5", "6", "7", "8"}
