"""Time commands as users run them: on a folder, with one worker and with several, and their start-up."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.processes import run_python
from ugicm import files, images
from ugicm.bitstream import Bitstream
from ugicm.image_writer import save_image


def rolled(image: Image.Image, number: int) -> Image.Image:
    """Return the image shifted cyclically, by an offset that depends on ``number``."""
    return Image.fromarray(np.roll(np.asarray(image), (37 * number, 101 * number), axis=(0, 1)))


def make_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write ``count`` different images of one size: the packaged samples, resized and rolled."""
    with resources.as_file(resources.files("ugicm") / "samples") as samples:
        sources = [images.open_rgb(path) for path in files.find(samples, [".png"])]
    for i in range(count):
        image = sources[i % len(sources)].resize((width, height), Image.Resampling.LANCZOS)
        save_image(rolled(image, i), folder / f"{i:04}.png")


def _seconds(*arguments: object) -> float:
    """Return the wall-clock time of one command. Raises UgicmError if it fails."""
    start = time.perf_counter()
    run_python(*arguments)
    return time.perf_counter() - start


def start_seconds(repeats: int) -> dict[str, float]:
    """Return median start-up times of Python, ``import ugicm`` and ``ugicm info``, after one run to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.ugic")
        file.write_bytes(Bitstream(768, 512, b"abc", 0.5, 0, (0,), (bytes(20000),)).pack())
        commands = {"python": ("-c", "pass"), "import ugicm": ("-c", "import ugicm"),
                    "ugicm info FILE": ("-m", "ugicm", "info", file)}  # fmt: skip
        return {
            name: round(statistics.median([_seconds(*command) for _ in range(repeats + 1)][1:]), 4)
            for name, command in commands.items()
        }


def time_folder(
    photos: Path, workers: int, checkpoint: str | None = None, repeats: int = 3, device: str = "cpu"
) -> dict[str, Any]:
    """Time ``ugicm compress`` and ``ugicm decompress`` on a folder, with one worker and with ``workers``.

    Returns:
        The report. Times are medians of ``repeats`` runs, which take turns. ``ratio`` compares the medians of whole
        commands. ``ratio_without_start`` subtracts the time of a folder with one image, which is mostly the time to
        load PyTorch and the model. ``same_files`` says whether both runs wrote identical files in every turn.

    Raises:
        UgicmError: a command failed.
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
            seconds: dict[str, list[float]] = {run: [] for run in inputs}
            same = True
            for _ in range(repeats):
                for run, source in inputs.items():
                    shutil.rmtree(outputs[run], ignore_errors=True)  # existing outputs are skipped
                    seconds[run].append(_seconds(
                        "-m", "ugicm", command, source, outputs[run], *model,
                        "--workers", workers if run == "side" else 1, "--device", device,
                    ))  # fmt: skip
                same &= _contents(outputs["one"]) == _contents(outputs["side"])
            report[command] = {**_summary(**seconds), "same_files": same}
            inputs = outputs
    return report


def _summary(single: list[float], one: list[float], side: list[float]) -> dict[str, Any]:
    start, alone, together = map(statistics.median, (single, one, side))
    beyond = together - start  # not positive if loading takes all the time
    runs = (("start", single), ("one_by_one", one), ("side_by_side", side))
    return {
        "start_seconds": round(start, 3),
        "one_by_one_seconds": round(alone, 3),
        "side_by_side_seconds": round(together, 3),
        "ratio": round(alone / together, 3),
        "ratio_without_start": round((alone - start) / beyond, 3) if beyond > 0 else None,
        "seconds": {name: [round(value, 3) for value in values] for name, values in runs},
    }


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
