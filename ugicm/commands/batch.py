"""Run one function over many files: what happens to outputs already there, progress, and how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ugicm.errors import UgicmError, described
from ugicm.files import Job


class Made(NamedTuple):
    """What was made for one job."""

    pixels: int
    size: int = 0  # bytes of the file


@dataclass(frozen=True)
class Outcome:
    """How one job ended; without anything made and without a reason, its output was there already."""

    made: Made | None = None
    reason: str = ""  # why it failed
    hopeless: bool = False  # its neighbors would fail as well


@dataclass
class Summary:
    """How a run ended."""

    done: int = 0
    pixels: int = 0
    size: int = 0  # bytes of the files made
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    untried: int = 0
    stopped: str = ""  # why the run ended early

    @property
    def status(self) -> int:
        """Exit status: 0, 1 where anything failed, 130 (as shells have it) after Ctrl-C."""
        return 130 if self.stopped == "interrupted" else int(bool(self.failed or self.stopped))

    def __str__(self) -> str:
        parts = [f"{self.done} done"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped (already there)")
        if self.untried:
            parts.append(f"{self.untried} not tried")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        text = ("stopped: " if self.stopped else "") + ", ".join(parts)
        reasons = [reason if str(path) in reason else f"{path}: {reason}" for path, reason in self.failed]
        if self.stopped:
            reasons.append(self.stopped)
        return text + (f": {reasons[0]}" if len(reasons) == 1 else "".join(f"\n  {r}" for r in reasons))


def run(
    jobs: Sequence[Job],
    work: Callable[[Job], Made],
    incomplete: Callable[[Job], str | None],
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    workers: int = 1,
    begin: Callable[[], object] = lambda: None,
) -> Summary:
    """Do every job whose output is not there yet; one that fails is remembered and does not stop the others.

    Args:
        work: makes the output.
        incomplete: says what is wrong with an output that is already there; None if it is what is wanted.
        overwrite: replace outputs that are already there.
        say: takes one line for each failure as it happens.
        workers: with more than one, jobs are done side by side in that many processes, forked from this one.
        begin: runs first in each of them.
    """
    from tqdm import tqdm

    summary, start, failed = Summary(), time.perf_counter(), {}
    unreported = {number: job.mark for number, job in enumerate(jobs)}

    def attempt(number: int) -> Outcome:
        job = jobs[number]
        try:
            if not job.taken or overwrite:
                return Outcome(work(job))
            complaint = incomplete(job)
            return Outcome(reason=f"{job.target}: {complaint}; --overwrite replaces it" if complaint else "")
        except (UgicmError, OSError, MemoryError, RuntimeError, ValueError) as error:
            return Outcome(reason=described(error), hopeless=getattr(error, "hopeless", False))

    # disable=None: no bar where stderr is not a terminal; closed, it is None itself
    with tqdm(total=len(jobs), unit="image", disable=None if len(jobs) > 1 and sys.stderr else True) as bar:

        def report(number: int, outcome: Outcome) -> bool:
            source = jobs[number].source
            del unreported[number]
            if outcome.reason:
                failed[number] = (source, outcome.reason)
                with bar.external_write_mode():
                    say(outcome.reason if str(source) in outcome.reason else f"{source}: {outcome.reason}")
                if outcome.hopeless:
                    summary.stopped = "no file can be written there" if len(jobs) > 1 else ""
                    return True
            elif outcome.made:
                summary.done += 1
                summary.pixels += outcome.made.pixels
                summary.size += outcome.made.size
                pace = summary.pixels / (time.perf_counter() - start) / 1e6
                bar.set_postfix_str(f"{pace:.2f} MP/s", refresh=False)
            else:
                summary.skipped += 1
            bar.update()
            return False

        try:
            if workers > 1:
                from ugicm.commands.workers import share

                share(len(jobs), attempt, workers, begin, lambda reason: Outcome(reason=reason), report)
            else:
                for number in range(len(jobs)):
                    if report(number, attempt(number)):
                        break
        except KeyboardInterrupt:
            summary.stopped = "interrupted"
            # A file that was whole when Ctrl-C came is done, though nobody lived to tell.
            summary.done += sum(jobs[number].mark != before for number, before in unreported.items())
    summary.failed = [failed[number] for number in sorted(failed)]
    summary.untried = len(jobs) - summary.done - summary.skipped - len(summary.failed)
    return summary
