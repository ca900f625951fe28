"""How many images a second a machine codes, with several processes side by side on its cores or on one GPU.

The networks of one image leave a GPU idle while a processor codes its symbols, and the other way round: processes
that take turns fill both. Images are in memory: no file is read or written.
"""

from __future__ import annotations

import multiprocessing
import queue
import statistics
import time
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from scripts.benchmark.folder_speed import moved
from scripts.benchmark.roofline import synchronize
from scripts.benchmark.speed import Ours, Setting
from ugicm.errors import UgicmError, described

WORK = ("compress", "decompress", "decompress_both")
PATIENCE = 600  # seconds that a process waits for the slowest to be ready


def throughput(setting: Setting, workers: int, images: int, repeats: int) -> dict[str, Any]:
    """Images a second of so many processes: of compress, of decompress to one and to both images.

    Each process has ``setting.threads`` threads and does ``images`` images at a time, all beginning together; the
    time is from there until the last is done. Medians of ``repeats`` such turns, after one to warm up.

    Raises UgicmError where a process fails.
    """
    context = multiprocessing.get_context("spawn")
    gate, found = context.Barrier(workers), context.Queue()
    crew = [
        context.Process(target=_serve, args=(setting, n, images, repeats, gate, found), daemon=True)
        for n in range(workers)
    ]
    try:
        for process in crew:
            process.start()
        spans = [_next(found, crew) for _ in crew]
    finally:
        for process in crew:
            process.terminate()
            process.join()
    record: dict[str, Any] = {"workers": workers, "images": workers * images}
    for work in WORK:
        seconds = [
            max(end for _, end in turn) - min(start for start, _ in turn)
            for turn in zip(*(span[work] for span in spans), strict=True)
        ]
        record[work] = round(workers * images / statistics.median(seconds), 2)
    return record


def _next(found: Any, crew: list[BaseProcess]) -> dict[str, list[tuple[float, float]]]:
    """What the next process to be done has measured. Raises UgicmError where one has failed or died."""
    while True:
        try:
            outcome = found.get(timeout=1)
        except queue.Empty:
            if dead := [process.exitcode for process in crew if process.exitcode]:
                raise UgicmError(f"one of {len(crew)} processes ended with status {dead[0]}") from None
            continue
        if isinstance(outcome, str):
            raise UgicmError(f"one of {len(crew)} processes: {outcome}")
        return outcome


def _serve(setting: Setting, number: int, images: int, repeats: int, gate: Any, found: Any) -> None:
    """One process: for each kind of work the begin and the end of every turn, on the clock that all of them share."""
    try:
        torch.set_num_threads(setting.threads)
        it = Ours(setting)
        it.image = moved(it.image, number)
        spans: dict[str, list[tuple[float, float]]] = {}
        for name in WORK:
            work = getattr(it, name)
            spans[name] = []
            for _ in range(repeats + 1):
                gate.wait(PATIENCE)
                start = time.perf_counter()
                for _ in range(images):
                    work()
                synchronize(setting.device)
                spans[name].append((start, time.perf_counter()))
            del spans[name][0]
        found.put(spans)
    except Exception as error:
        found.put(described(error) or type(error).__name__)
        found.close()
        found.join_thread()  # before the others say that they waited in vain
        gate.abort()
