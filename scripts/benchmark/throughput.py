"""Measure images per second with several processes side by side, on the cores of a CPU or on one GPU.

While a CPU core entropy-codes one image, the GPU is idle, and vice versa. Concurrent processes use both. Images are in
memory: no file is read or written.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import BrokenBarrierError
from typing import Any

import torch

from scripts.benchmark.folder_speed import rolled
from scripts.benchmark.roofline import synchronize
from scripts.benchmark.speed import BenchmarkCase, UgicmSubject
from ugicm.errors import UgicmError, error_message

OPERATIONS = ("compress", "decompress", "decompress_both")
READY_TIMEOUT = 600  # seconds until all processes must have loaded the model

_barrier: Any = None  # of a worker process
_subject: Any = None


def throughput(case: BenchmarkCase, workers: int, images: int, repeats: int) -> dict[str, Any]:
    """Return images per second of compress, and of decompress to one and to both images.

    Args:
        case: codec, image size, device, and threads of each process.
        workers: number of processes.
        images: images per process and turn.
        repeats: turns. The median counts.

    Raises:
        UgicmError: a process failed.
    """
    context = multiprocessing.get_context("spawn")
    record: dict[str, Any] = {"workers": workers, "images": workers * images}
    barrier = context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, initializer=_set_barrier, initargs=(barrier,)) as pool:
        ready = [pool.submit(_load, case, number) for number in range(workers)]
        reasons = [error_message(error) for future in ready if (error := future.exception())
                   and not isinstance(error, BrokenBarrierError)]  # fmt: skip
        if reasons:
            raise UgicmError(f"one of {workers} processes failed: {reasons[0]}")
        try:
            for operation in OPERATIONS:
                seconds = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    list(pool.map(_run, [operation] * (workers * images)))
                    seconds.append(time.perf_counter() - start)
                record[operation] = round(workers * images / statistics.median(seconds), 2)
        except BrokenProcessPool:
            raise UgicmError(f"one of {workers} processes died") from None
    return record


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _load(case: BenchmarkCase, number: int) -> None:
    """Load the codec and warm up, once in every process: the barrier keeps a process from taking two of these calls."""
    global _subject
    try:
        torch.set_num_threads(case.threads)
        _subject = UgicmSubject(case)
        _subject.image = rolled(_subject.image, number)
        for operation in OPERATIONS:
            _run(operation)
        _barrier.wait(READY_TIMEOUT)
    except BaseException:
        _barrier.abort()
        raise


def _run(operation: str) -> None:
    getattr(_subject, operation)()
    synchronize(_subject.codec.device)
