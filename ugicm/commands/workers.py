"""Run a task over files in several processes.

Processes are spawned, not forked: this works on Linux, macOS and Windows, and on GPUs. A worker takes about two seconds
to import PyTorch and to load the shipped model.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from ugicm.commands.batch import CodecTask, Outcome, run_job
from ugicm.errors import UgicmError
from ugicm.files import Job

MAX_DEFAULT_WORKERS = 16  # each takes the memory of a model and of an image
MIN_PARALLEL_JOBS = 8  # below, starting workers takes longer than they save, unless images are large

_task: CodecTask  # of this worker process
_overwrite: bool


class WorkerError(UgicmError):
    """A worker process ended unexpectedly."""


def choose_workers(requested: int | None, device: str, jobs: int, least: int = MIN_PARALLEL_JOBS) -> int:
    """Return the number of worker processes: as requested, else one per core on the CPU from ``least`` jobs on."""
    import torch

    if requested is not None:
        return min(requested, jobs)
    if jobs < least or torch.device(device).type != "cpu":
        return 1
    return min(torch.get_num_threads(), MAX_DEFAULT_WORKERS, jobs)  # respects CPU affinity and OMP_NUM_THREADS


def run_parallel(task: CodecTask, jobs: Sequence[Job], overwrite: bool, workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Run a task on jobs in ``workers`` processes. Yield jobs with their outcomes as they end.

    Jobs in progress are abandoned when the generator is closed or interrupted. Warnings of the workers are raised in
    this process.

    Raises WorkerError if a worker process dies, and what ``task.start`` raises.
    """
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _initialize, (task, overwrite))
    queue, pending = iter(jobs), {}

    def submit(count: int) -> None:
        pending.update((executor.submit(_run, job), job) for job in itertools.islice(queue, count))

    try:
        submit(workers)
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=_has_failed):  # results before the error that ends the run
                outcome = future.result()
                job = pending.pop(future)
                for text in outcome.warnings:
                    warnings.warn(text, stacklevel=1)  # filters show each text once
                yield job, outcome
                submit(1)
    except BrokenProcessPool:
        advice = "run the command again to continue, with fewer --workers if memory is short"
        raise WorkerError(f"a worker process died; {advice}") from None
    finally:
        if pending:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        executor.shutdown(cancel_futures=True)


def _has_failed(future: Future) -> bool:
    return future.exception() is not None


def _initialize(task: CodecTask, overwrite: bool) -> None:
    """Initialize a worker process."""
    global _task, _overwrite
    _task, _overwrite = task, overwrite
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    warnings.filterwarnings("ignore", module="torch")
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@functools.cache
def _start() -> CodecTask:
    _task.start()  # not in _initialize, where an exception would break the pool
    return _task


def _run(job: Job) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        outcome = run_job(_start(), job, _overwrite)
    return replace(outcome, warnings=tuple(str(warning.message) for warning in caught))
