"""Shards as inputs of ``ugicm compress`` and ``ugicm decompress``.

Standard output has a line of JSON for each shard as it ends. Messages, progress and summary go to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ugicm import atomic
from ugicm.arguments import pick_device
from ugicm.commands.batch import Outcome, import_torch, print_error, run_job
from ugicm.errors import UsageError
from ugicm.shards.convert import Converted, ShardJob, convert_shard, is_finished, plan_shards
from ugicm.shards.files import absolute, expand, file_system, is_local, is_shard


class ImageTask(Protocol):
    """A task on images that also converts members of shards."""

    checkpoint: str | None
    device: str
    one_thread: bool

    def start(self) -> None: ...

    def convert(self, name: str, data: bytes) -> Converted: ...

    def settings(self) -> dict[str, Any]: ...


@dataclass
class ShardTask:
    """Convert the images of shards, unless the output is finished. It is pickled to every worker process."""

    images: ImageTask
    suffixes: Collection[str]
    overwrite: bool

    def start(self) -> None:
        """Load the codec on the device of this process."""
        torch = import_torch()
        self.images.device = pick_device(self.images.device)
        self.images.one_thread = torch.device(self.images.device).type == "cpu"
        self.images.start()

    @property
    def device(self) -> str:
        return self.images.device

    def targets(self, job: ShardJob) -> list[str]:
        """Return the output of a shard."""
        return [job.target]

    def run(self, job: ShardJob) -> dict[str, Any] | None:
        """Convert a shard. Returns its manifest and the seconds it took, or None if it was finished before."""
        started, settings = time.perf_counter(), self.images.settings()
        if not self.overwrite and is_finished(job, settings):
            return None
        manifest = convert_shard(job, self.suffixes, self.images.convert, settings)
        return manifest | {"seconds": round(time.perf_counter() - started, 3)}

    def attempt(self, job: ShardJob) -> Outcome:
        """Convert a shard, or say why not."""
        return run_job(self, job, True)


@dataclass
class ShardSummary:
    """How a run over shards ended."""

    total: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    stopped: str = ""  # why the run ended early
    sums: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("images", "reduced", "image_bytes", "converted_bytes"), 0)
    )
    failed_images: int = 0

    @property
    def status(self) -> int:
        """Exit status: 0 if all images are kept in full, 1 if anything failed or was left out, 130 after Ctrl-C."""
        failed = self.failed or self.failed_images or self.sums["reduced"] or self.stopped
        return 130 if self.stopped == "interrupted" else int(bool(failed))

    def add(self, job: ShardJob, outcome: Outcome) -> dict[str, Any]:
        """Count a shard. Returns its record for the log."""
        record = {"shard": job.source, "output": job.target}
        if outcome.error:
            self.failed += 1
            return record | {"status": "failed", "error": outcome.error}
        if outcome.result is None:
            self.skipped += 1
            return record | {"status": "skipped"}
        self.done += 1
        for name in self.sums:
            self.sums[name] += outcome.result[name]
        failed = outcome.result["failed"]
        self.failed_images += len(failed)
        left_out = ("source", "settings", "ugicm", "failed")
        values = {name: value for name, value in outcome.result.items() if name not in left_out}
        return record | {"status": "done", **values, "failed": len(failed), "failures": failed[:10]}

    def __str__(self) -> str:
        sums, remaining = self.sums, self.total - self.done - self.skipped - self.failed
        counts = {
            "shards done": self.done, "skipped (finished)": self.skipped, "failed": self.failed,
            "remaining": remaining, "images converted": sums["images"], "images failed": self.failed_images,
            "without further pages or frames": sums["reduced"],
        }  # fmt: skip
        text = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "shards done")
        if sums["images"]:
            text += f"; {sums['image_bytes']:,} -> {sums['converted_bytes']:,} bytes"
        return text + (f": {self.stopped}" if self.stopped else "")


def are_shards(inputs: Sequence[str], args: argparse.Namespace) -> bool:
    """Return whether the inputs of a command are shards. Raises UsageError if only some are, or for --ray without."""
    shards = [name for name in inputs if is_shard(name)]
    if shards and len(shards) < len(inputs):
        raise UsageError("shards and other inputs cannot be mixed")
    if args.ray is not None and not shards:
        raise UsageError("--ray works on shards (.tar)")
    return bool(shards)


def run(
    images: ImageTask, inputs: Sequence[str], output: str | None, suffixes: Collection[str], args: argparse.Namespace
) -> int:
    """Convert the members with ``suffixes`` of shards. Returns the exit status."""
    if not output or output == "-" or is_shard(output):
        raise UsageError("name an output folder for the shards")
    folder = absolute(output)
    file_system(folder)
    jobs = plan_shards([url for name in inputs for url in expand(name)], folder)
    if is_local(folder):
        atomic.prepare_folders([Path(jobs[0].target)])
    if images.checkpoint:
        images.checkpoint = absolute(images.checkpoint)
    images.device = args.device
    task = ShardTask(images, suffixes, args.overwrite)
    summary = _follow(jobs, _outcomes(task, jobs, args))
    print_error(str(summary))
    return summary.status


def _outcomes(
    task: ShardTask, jobs: Sequence[ShardJob], args: argparse.Namespace
) -> Iterator[tuple[ShardJob, Outcome]]:
    from ugicm.commands.workers import choose_workers, run_parallel

    if args.ray is not None:
        from ugicm.ray_workers import run_on_ray

        for job, outcome, error in run_on_ray(task, jobs, args.ray, args.workers):
            yield job, outcome or Outcome(error=f"{job.source}: {error}")
        return
    import_torch()
    workers = choose_workers(args.workers, pick_device(args.device), len(jobs), least=2)
    if workers > 1:
        yield from run_parallel(task, jobs, True, workers)
        return
    task.start()
    for job in jobs:
        yield job, task.attempt(job)


def _follow(jobs: Sequence[ShardJob], outcomes: Iterator[tuple[ShardJob, Outcome]]) -> ShardSummary:
    """Print a line for each shard as it ends, and show progress."""
    from tqdm import tqdm

    from ugicm.commands.workers import WorkerError

    summary, start, log = ShardSummary(len(jobs)), time.perf_counter(), sys.stdout
    bar = tqdm(total=len(jobs), unit="shard", disable=None if sys.stderr else True)
    # Ray prints messages to standard output, which is for the log.
    with bar, contextlib.closing(outcomes), contextlib.redirect_stdout(sys.stderr):
        try:
            for job, outcome in outcomes:
                record = summary.add(job, outcome)
                with bar.external_write_mode():
                    print(json.dumps(record), file=log, flush=True)
                    if outcome.error:
                        print_error(outcome.error)
                if outcome.fatal:
                    summary.stopped = "the other shards would fail for the same reason"
                    break
                pace = summary.sums["images"] / (time.perf_counter() - start)
                bar.set_postfix_str(f"{pace:.2f} images/s, {summary.failed_images} failed", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            summary.stopped = "interrupted"
        except WorkerError as error:
            summary.stopped = str(error)
    return summary
