"""Run a task over files: keep or replace existing outputs, show progress, and summarize how the run ended."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ugicm import atomic, bitstream
from ugicm.arguments import pick_device
from ugicm.errors import UgicmError, error_message, first_line, first_of, printable
from ugicm.files import Job, Plan, count_images, describe_left_out, would_replace

GPU_THREADS = 4  # images in progress at a time on a GPU


class FileResult(NamedTuple):
    """The result of one job."""

    pixels: int
    size: int = 0  # bytes of a compressed file
    source_size: int = 0  # bytes of the image file
    frames: int = 1  # pages or frames of the image file, of which one is kept
    note: str = ""  # what else there is to say of a single file


@dataclass(kw_only=True)
class CodecTask:
    """Base class of work on single files with a codec. A task is pickled to every worker process before it starts."""

    checkpoint: str | None
    max_pixels: int | None
    device: str = "cpu"
    one_thread: bool = False

    def start(self) -> None:
        """Load ``codec``. Called once in each process, before its first job. An exception ends the run."""
        torch = import_torch()
        from PIL import Image

        from ugicm.codec import load

        bitstream.MAX_PIXELS = self.max_pixels
        if self.max_pixels is None or self.max_pixels > (Image.MAX_IMAGE_PIXELS or self.max_pixels):
            Image.MAX_IMAGE_PIXELS = self.max_pixels  # Pillow has a limit of its own
        if self.one_thread:
            torch.set_num_threads(1)
        try:
            self.codec = load(self.checkpoint, self.device)
        except RuntimeError as error:  # a GPU without enough memory, for example
            reason = first_line(error)
            raise UgicmError(f"cannot load the model on {self.device}: {reason}; try fewer --workers") from None

    def run(self, job: Job) -> FileResult:
        """Write the target of a job."""
        raise NotImplementedError

    def targets(self, job: Job) -> list[Path]:
        """Return the files that :meth:`run` writes."""
        return [job.target]

    def mismatch(self, job: Job, target: Path) -> str | None:
        """Return how an existing target differs from what :meth:`run` would write, or None if it does not."""
        raise NotImplementedError


@dataclass(frozen=True)
class Outcome:
    """How one job ended. Without anything, its targets were up to date."""

    result: Any = None  # what the task returned
    error: str = ""
    mismatch: str = ""  # how an existing target differs
    fatal: bool = False  # the remaining jobs would fail as well
    warnings: tuple[str, ...] = ()  # raised in a worker process


@dataclass
class Summary:
    """How a run ended."""

    total: int
    done: int = 0
    pixels: int = 0
    size: int = 0  # bytes of the files written
    source_size: int = 0  # bytes of the image files
    larger: int = 0  # bitstreams larger than their image files
    note: str = ""  # of the last file
    reduced: int = 0  # images of which one page or frame of several is kept
    skipped: int = 0
    failed: int = 0
    mismatches: dict[str, list[Path]] = field(default_factory=dict)  # existing targets by how they differ
    stopped: str = ""  # why the run ended early
    left_out: str = ""  # kinds of files in input folders that are not worked on
    images_left_out: int = 0

    @property
    def different(self) -> int:
        """Number of jobs that were not done because a target exists and differs."""
        return sum(map(len, self.mismatches.values()))

    @property
    def remaining(self) -> int:
        return self.total - self.done - self.skipped - self.failed - self.different

    @property
    def status(self) -> int:
        """Exit status: 0 if all images are kept in full, 1 if anything failed or was left out, 130 after Ctrl-C."""
        incomplete = self.failed or self.different or self.reduced or self.images_left_out or self.stopped
        return 130 if self.stopped == "interrupted" else int(bool(incomplete))

    def __str__(self) -> str:
        counts = {
            "done": self.done, "skipped (up to date)": self.skipped, "remaining": self.remaining,
            "failed": self.failed, "not replaced": self.different, "without further pages or frames": self.reduced,
            "larger than the image": self.larger,
        }  # fmt: skip
        parts = [f"{count} {text}" for text, count in counts.items() if count or text == "done"]
        text = ("stopped: " if self.stopped else "") + ", ".join(parts)
        text += f"; left out: {self.left_out}" if self.left_out else ""
        return text + (f": {self.stopped}" if self.stopped else "")

    def add(self, result: FileResult) -> None:
        self.done += 1
        self.pixels += result.pixels
        self.size += result.size
        self.source_size += result.source_size
        self.larger += 0 < result.source_size < result.size
        self.reduced += result.frames > 1
        self.note = result.note


def run_batch(task: CodecTask, jobs: Sequence[Job], overwrite: bool = False, workers: int = 1) -> Summary:
    """Run a task on every job whose target is not up to date. A job that fails does not stop the others.

    Args:
        task: what to do.
        jobs: input and output files.
        overwrite: replace existing targets.
        workers: number of processes. 1 runs the jobs in this process.

    Raises what ``task.start`` raises, and exceptions that are bugs.
    """
    from tqdm import tqdm

    from ugicm.commands.workers import WorkerError, run_parallel

    summary, start = Summary(len(jobs)), time.perf_counter()
    outcomes = run_parallel(task, jobs, overwrite, workers) if workers > 1 else _run_here(task, jobs, overwrite)
    # disable=None hides the bar if stderr is not a terminal. sys.stderr is None if it is closed.
    bar = tqdm(total=len(jobs), unit="image", disable=None if len(jobs) > 1 and sys.stderr else True)
    with bar, contextlib.closing(outcomes):
        try:
            for job, outcome in outcomes:
                if outcome.error:
                    summary.failed += 1
                    with bar.external_write_mode():
                        print_error(_named(job.source, outcome.error))
                    if outcome.fatal and len(jobs) > 1:
                        summary.stopped = "the other files would fail for the same reason"
                        break
                elif outcome.mismatch:
                    summary.mismatches.setdefault(outcome.mismatch, []).append(job.target)
                elif outcome.result:
                    summary.add(outcome.result)
                    pace = summary.pixels / (time.perf_counter() - start) / 1e6
                    bar.set_postfix_str(f"{pace:.2f} MP/s", refresh=False)
                else:
                    summary.skipped += 1
                bar.update()
        except KeyboardInterrupt:
            summary.stopped = "interrupted"
        except WorkerError as error:
            summary.stopped = str(error)
    for reason, targets in summary.mismatches.items():
        found = "1 existing output is" if len(targets) == 1 else f"{len(targets)} existing outputs are"
        names = first_of(map(str, sorted(targets)))
        print_error(f"{found} {reason}; use --overwrite to replace what exists: {names}")
    return summary


def _run_here(task: CodecTask, jobs: Sequence[Job], overwrite: bool) -> Iterator[tuple[Job, Outcome]]:
    """Run a task on jobs in this process, on a GPU several at a time."""
    task.start()
    if len(jobs) == 1:
        from ugicm import progress

        with progress.shown():
            outcome = run_job(task, jobs[0], overwrite)
        yield jobs[0], outcome
        return
    if task.device == "cpu":
        for job in jobs:
            yield job, run_job(task, job, overwrite)
        return
    from concurrent.futures import ThreadPoolExecutor, as_completed

    executor = ThreadPoolExecutor(GPU_THREADS)  # files and entropy coding on the CPU, while the GPU computes others
    try:
        futures = {executor.submit(run_job, task, job, overwrite): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def run_job(task: CodecTask, job: Job, overwrite: bool) -> Outcome:
    """Run one job, unless its targets exist. Errors of files and of the machine are returned, bugs propagate."""
    try:
        targets = task.targets(job)
        existing = [] if overwrite else [target for target in targets if would_replace(target)]
        for target in existing:
            if mismatch := task.mismatch(job, target):
                return Outcome(mismatch=mismatch)
        return Outcome() if len(existing) == len(targets) else Outcome(task.run(job))
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return Outcome(error=error_message(error), fatal=getattr(error, "fatal", False))


def run_codec_task(task: CodecTask, plan: Plan, args: argparse.Namespace) -> int:
    """Run a task on the files of a plan as the options of a command say, and print the result.

    Returns the exit status.
    """
    torch = import_torch()
    from ugicm.checkpoints.hub import local_path
    from ugicm.commands.workers import choose_workers

    task.device = pick_device(args.device)
    if task.checkpoint is not None:
        task.checkpoint = os.fspath(local_path(task.checkpoint))
    jobs, several = plan.jobs, plan.folder or len(plan.jobs) > 1
    atomic.prepare_folders(job.target for job in jobs)
    workers = choose_workers(args.workers, task.device, len(jobs))
    # The last digits of transforms depend on the number of threads. The files of a folder must not depend on the
    # number of workers, which have one thread each.
    task.one_thread = several and torch.device(task.device).type == "cpu"
    summary = run_batch(task, jobs, args.overwrite, workers)
    summary.left_out, summary.images_left_out = describe_left_out(plan.left_out), count_images(plan.left_out)
    # The target may be standard output itself.
    out = sys.stderr if any(atomic.is_special(job.target) for job in jobs) else sys.stdout
    if not several and summary.done:
        print(printable(f"{jobs[0].source} -> {', '.join(map(str, task.targets(jobs[0])))}"), file=out)
    if summary.size:
        note = f", {summary.note}" if summary.note and not several else ""
        share = f", {100 * summary.size / summary.source_size:.1f} % of the image file" + "s" * (summary.done > 1)
        print(f"{summary.size:,} bytes, {8 * summary.size / summary.pixels:.3f} bpp{share}{note}", file=out)
    if summary.larger and not several:
        print_error("warning: the bitstream is larger than the image file")
    if plan.orphans:
        names = first_of(map(str, plan.orphans))
        print_error(f"warning: {len(plan.orphans)} in the output folder without an input: {names}")
    if several or summary.stopped:  # the error of a single file has been printed
        print(summary, file=out)
    return summary.status


def import_torch() -> ModuleType:
    """Import PyTorch without garbage collection of what it creates, neither during the import nor at exit.

    This saves a quarter of the time that a command takes for one image.
    """
    if "torch" in sys.modules:
        return sys.modules["torch"]
    gc.disable()
    try:
        import torch
    finally:
        gc.enable()
    gc.freeze()
    return torch


def print_error(message: str) -> None:
    """Print an error on one line of standard error."""
    print(printable(f"ugicm: {message}"), file=sys.stderr)


def _named(path: Path, error: str) -> str:
    return error if printable(str(path)) in error else f"{path}: {error}"
