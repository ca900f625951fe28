"""How long commands take as users run them: over a folder one by one and side by side, and until they begin."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ugicm import files, images
from ugicm.errors import UgicmError


def moved(image: Image.Image, number: int) -> Image.Image:
    """Another image for every number: the same, moved round."""
    return Image.fromarray(np.roll(np.asarray(image), (37 * number, 101 * number), axis=(0, 1)))


def make_images(folder: Path, count: int, width: int, height: int, sources: Sequence[Path] = ()) -> None:
    """``count`` different images of one size: photographs (the package's samples by default), each moved round."""
    if not sources:
        with resources.as_file(resources.files("ugicm") / "samples") as samples:
            return make_images(folder, count, width, height, files.find(samples, [".png"]))
    for i in range(count):
        image = images.open_rgb(sources[i % len(sources)]).resize((width, height), Image.Resampling.LANCZOS)
        images.save_image(moved(image, i), folder / f"{i:04}.png")


def _seconds(*arguments: object) -> float:
    """Of one command in a process of its own. Raises UgicmError with what it said where it fails."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(":")}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UgicmError(f"{' '.join(map(str, arguments))}: {done.stderr.strip() or done.stdout.strip()}")
    return seconds


def start_seconds(repeats: int) -> dict[str, float]:
    """Medians over fresh processes, after one that fills the disk cache: Python alone, ``import ugicm``, and
    ``ugicm info`` on a stream."""
    from ugicm.bitstream import Stream

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.ugic")
        file.write_bytes(Stream(768, 512, b"abc", 0.5, 0, (0,), (bytes(20000),)).pack())
        commands = {"python": ("-c", "pass"), "import ugicm": ("-c", "import ugicm"),
                    "ugicm info FILE": ("-m", "ugicm", "info", file)}  # fmt: skip
        return {
            name: round(statistics.median([_seconds(*command) for _ in range(repeats + 1)][1:]), 4)
            for name, command in commands.items()
        }


def time_folder(
    photos: Path, workers: int, checkpoint: str | None = None, repeats: int = 3, device: str = "cpu"
) -> dict[str, Any]:
    """``ugicm compress`` and ``decompress`` of a folder with one worker and with ``workers``, each on one core.

    Seconds are medians of ``repeats`` runs, which take turns, and ratios are of these medians. ``ratio`` is of whole
    commands; ``ratio_without_start`` leaves out what a folder of one image takes, which is mostly loading PyTorch and
    the model.
    """
    sources = files.find(photos, files.IMAGE_SUFFIXES)
    model = ("-c", checkpoint) if checkpoint else ()
    report: dict[str, Any] = {"images": len(sources), "workers": workers, "repeats": repeats}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "single").mkdir()
        single = folder / "single" / sources[0].name
        single.write_bytes(sources[0].read_bytes())
        # The first command fills the disk cache.
        _seconds("-m", "ugicm", "compress", single, folder / "warm.ugic", "--device", device, *model)
        inputs = {"single": folder / "single", "one": photos, "side": photos}
        for command in ("compress", "decompress"):
            outputs = {run: folder / f"{command}-{run}" for run in inputs}
            taken: dict[str, list[float]] = {run: [] for run in inputs}
            same = True
            for _ in range(repeats):
                for run, source in inputs.items():
                    shutil.rmtree(outputs[run], ignore_errors=True)  # what is there would not be made again
                    taken[run].append(_seconds(
                        "-m", "ugicm", command, source, outputs[run], *model,
                        "--workers", workers if run == "side" else 1, "--device", device,
                    ))  # fmt: skip
                same &= _contents(outputs["one"]) == _contents(outputs["side"])
            report[command] = {**_figures(**taken), "same_files": same}
            inputs = outputs
    return report


def _figures(single: list[float], one: list[float], side: list[float]) -> dict[str, Any]:
    """Medians, their ratios, and all that was measured, in seconds."""
    start, alone, together = map(statistics.median, (single, one, side))
    beyond = together - start  # not positive where loading is all there is
    return {
        "start_seconds": round(start, 3),
        "one_by_one_seconds": round(alone, 3),
        "side_by_side_seconds": round(together, 3),
        "ratio": round(alone / together, 3),
        "ratio_without_start": round((alone - start) / beyond, 3) if beyond > 0 else None,
        "seconds": {
            name: [round(seconds, 3) for seconds in taken]
            for name, taken in (("start", single), ("one_by_one", one), ("side_by_side", side))
        },
    }


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
