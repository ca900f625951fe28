"""Measure coding where images or other programs share the cores: a batch of images, and a busy machine."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from scripts.benchmark.folder_speed import rolled
from scripts.benchmark.roofline import median_ratio, seconds_in_turns
from scripts.benchmark.speed import QUALITY, build, sample
from scripts.processes import in_fresh_process

# What threads of OpenMP do while they wait: the variables that `import ugicm` sets, always sleep, always spin.
POLICIES = {
    "passive, 2000": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"},
    "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "active": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "infinite"},
}


def batch_speed(size: tuple[int, int], count: int, threads: int, repeats: int) -> dict[str, Any]:
    """Return images per second of the shipped model, one by one and as a batch. Calls take turns.

    Args:
        size: (height, width) of the images.
        count: images in the batch.
        threads: of PyTorch.
        repeats: turns. Medians count.
    """
    torch.set_num_threads(threads)
    codec, photo = build(None, "cpu"), sample(size[1], size[0])
    images = [rolled(photo, number) for number in range(count)]
    data = codec.compress(images, QUALITY)
    pairs = {
        "compress": (lambda: [codec.compress(i, QUALITY) for i in images], lambda: codec.compress(images, QUALITY)),
        "decompress": (lambda: [codec.decompress(d) for d in data], lambda: codec.decompress(data)),
    }
    report: dict[str, Any] = {"size": list(size), "count": count, "threads": threads, "repeats": repeats}
    for name, works in pairs.items():
        one, many = seconds_in_turns(works, repeats)
        report[name] = {
            "one_by_one_per_s": round(count / statistics.median(one), 2),
            "batch_per_s": round(count / statistics.median(many), 2),
            "ratio": median_ratio(one, many),
            "same": list(map(_content, works[0]())) == list(map(_content, works[1]())),
        }
    return report


def _content(result: bytes | Image.Image) -> bytes:
    return result if isinstance(result, bytes) else result.tobytes()


def busy_speed(size: tuple[int, int], busy: Sequence[int], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Return CPU and wall-clock seconds of coding beside other processes that never rest.

    Args:
        size: (height, width) of the image.
        busy: numbers of other processes.
        threads: of PyTorch.
        repeats: calls. Medians count.
    """
    runs = []
    for others in busy:
        with _busy_processes(others):
            for policy, variables in POLICIES.items():
                os.environ.update(variables)  # the new process reads them when it imports PyTorch
                seconds = in_fresh_process(_coding_seconds, size, threads, repeats)
                runs.append({"policy": policy, "busy": others, **seconds})
    return runs


@contextlib.contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _coding_seconds(size: tuple[int, int], threads: int, repeats: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    codec, image = build(None, "cpu"), sample(size[1], size[0])
    data = codec.compress(image, QUALITY)
    works = {"compress": lambda: codec.compress(image, QUALITY), "decompress": lambda: codec.decompress(data)}
    found = {}
    for name, work in works.items():
        work()
        cpu, wall = [], []
        for _ in range(repeats):
            start = time.process_time(), time.perf_counter()
            work()
            cpu.append(time.process_time() - start[0])
            wall.append(time.perf_counter() - start[1])
        found[f"{name}_cpu_s"], found[f"{name}_s"] = (round(statistics.median(v), 3) for v in (cpu, wall))
    return found
