"""Runs over files: which inputs, under which names outputs go, what happens to those already there, how it ended.

A file appears under its final name only when it is complete: it is written beside it under a hidden name
``.HOST-PID-N.ugicm-part`` first. A run that is killed leaves at most such a file, and the next one removes it.
Importing this module is quick: only the standard library is needed until a run starts.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import platform
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ugicm.errors import UgicmError, UsageError, described

STREAM_SUFFIX = ".ugic"
# What counts as a picture inside a folder; a file that is named itself may have any extension.
PICTURE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff",
    ".webp",
)  # fmt: skip

_OPEN = {Path("/dev/fd"), Path("/proc/self/fd")}  # folders of open files, by number
_DEVICES = {Path("/dev"), *_OPEN}
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_PART_SUFFIX = ".ugicm-part"
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_numbers = itertools.count()
# Errors that every further file would meet as well: a run stops there.
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class WriteError(UgicmError):
    """A file cannot be written. ``hopeless`` says that its neighbours cannot be either (a full disk)."""

    def __init__(self, path: Path, error: OSError):
        not_a_folder = error.errno in (errno.ENOTDIR, errno.EEXIST)
        reason = "not a folder" if not_a_folder else error.strerror or error
        super().__init__(f"{error.filename or path}: cannot be written: {reason}")
        self.hopeless = error.errno in _HOPELESS
        self._made_from = path, error

    def __reduce__(self) -> tuple:  # as exceptions are pickled, __init__ would be called with the message
        return type(self), self._made_from


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` (made if missing) that replaces ``path`` when the block succeeds.

    Raises WriteError for whatever the system refuses.
    """
    path = Path(path)
    temporary = path.parent / _part_name()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise WriteError(path, OSError(error.errno, error.strerror or str(error), _place(error, temporary))) from None
    except BaseException:
        _discard(temporary)
        raise


def _part_name() -> str:
    return f".{_HOST}-{os.getpid()}-{next(_numbers)}{_PART_SUFFIX}"


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


def _place(error: OSError, temporary: Path) -> str | None:
    """The path an error is about, unless it is the temporary one, which means nothing to people."""
    return None if error.filename is None or Path(error.filename) == temporary else error.filename


def write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file, whole or not at all. Raises WriteError."""
    path = Path(path)
    if is_special(path):
        number = _descriptor(path)
        try:
            # What is open already is written where it stands: opened once more, a file would be emptied first.
            with open(path if number is None else os.dup(number), "wb") as file:
                file.write(data)
        except OSError as error:
            raise WriteError(path, error) from None
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def is_special(path: Path) -> bool:
    """Whether ``path`` is a pipe or device, or a name that stands for whatever is open, as /dev/stdout does: it is
    written into and never replaced."""
    try:
        file = path.is_file() and path.absolute().parent not in _DEVICES
        return path.exists() and not path.is_dir() and not file
    except OSError:  # a name too long, for example: said where the file is written
        return False


def obstacle(folder: Path) -> str | None:
    """What stands in the way of writing into ``folder``, which is made where it is missing; None: nothing known."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"no permission to write in {there}"


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a name such as /dev/stdout or /dev/fd/3 stands for."""
    path = path.absolute()
    if path.parent in _OPEN and path.name.isdecimal():
        return int(path.name)
    return _STANDARD.get(path.name) if path.parent == Path("/dev") else None


def prepare(jobs: Iterable[Job]) -> None:
    """Make the output folders, see that they can be written, and clear them of what killed runs left.

    Raises WriteError naming the first folder that cannot be written, before any work is done for it.
    """
    for folder in sorted({job.target.parent for job in jobs if not is_special(job.target)}):
        probe = folder / _part_name()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WriteError(folder, OSError(error.errno, error.strerror, _place(error, probe))) from None
        remove_stale(folder)


def remove_stale(folder: Path) -> None:
    """Remove what killed runs left in ``folder``: of this machine's dead processes, or older than a day."""
    for part in folder.glob(f".*{_PART_SUFFIX}"):
        host, _, rest = part.name[1:].partition("-")
        owner = rest.partition("-")[0]
        with contextlib.suppress(OSError):
            old = part.stat().st_mtime < time.time() - 86400
            if old or host == _HOST and owner.isdecimal() and not _alive(int(owner)):
                part.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere asking with signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def find(folder: str | os.PathLike, suffixes: Sequence[str]) -> list[Path]:
    """Files under ``folder`` with one of ``suffixes`` (any case), sorted; hidden files and folders are left out, and
    links to folders are not followed.

    Raises UsageError where there are none, OSError for a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in suffixes]
    found = [path for path in found if not is_special(path)]  # a pipe would be waited for
    if not found:
        raise UsageError(f"{os.fspath(folder)}: no files to work on in this folder (looked for {' '.join(suffixes)})")
    return sorted(found)


@dataclass(frozen=True)
class Job:
    """One file to make from another."""

    source: Path
    target: Path

    @property
    def taken(self) -> bool:
        """Whether writing the target would replace something (a device or pipe is written into)."""
        return not is_special(self.target) and (self.target.is_file() or self.target.is_symlink())

    @property
    def mark(self) -> tuple[int, int] | None:
        """Changes when the target is written over; None while writing it would replace nothing."""
        with contextlib.suppress(OSError):  # a name too long, for example: said where the job is done
            if self.taken:
                there = self.target.lstat()
                return there.st_ino, there.st_mtime_ns
        return None


def plan(
    source: str | os.PathLike, target: str | os.PathLike | None, suffixes: Sequence[str], suffix: str
) -> list[Job]:
    """What there is to do for an input and an output given by a user.

    A file goes to the file ``target``, or into it where it is a folder, or beside the source without one; a folder
    goes to a folder with the same tree. Outputs are named with ``suffix`` in place of the input's; inputs of one
    folder that would share a name (a.jpg, a.png) keep theirs in front (a.jpg.ugic, a.png.ugic).

    Raises UsageError: there is no input, or the output would land on it.
    """
    if not os.fspath(source) or target is not None and not os.fspath(target):
        raise UsageError("an empty name was given for a file or folder")  # Path would take it for the current folder
    source = Path(source)
    if source.is_dir():
        if target is None:
            raise UsageError(f"{source} is a folder: name an output folder as well")
        folder = Path(target)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{source} is a folder, but the output {folder} is a file")
        if folder.exists() and folder.samefile(source):
            raise UsageError(f"the output folder {folder} is the input folder: choose another")
        return pair(find(source, suffixes), source, folder, suffix)
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if target is None:
        path = source.with_suffix(suffix)
    elif Path(target).is_dir() or os.fspath(target).endswith(("/", os.sep)):
        path = Path(target, source.name).with_suffix(suffix)
    else:
        path = Path(target)
    if path.exists() and path.samefile(source):
        raise UsageError(f"{path}: the output would replace the input: choose another name")
    return [Job(source, path)]


def pair(sources: Iterable[Path], root: Path, folder: Path, suffix: str) -> list[Job]:
    """Jobs from files under ``root`` to ``folder`` with the same tree; no two share an output."""
    targets = {source: source.relative_to(root).with_suffix(suffix) for source in sources}
    while True:
        claims = defaultdict(list)
        for source, target in targets.items():
            claims[target].append(source)
        # A full name can meet another's short one (a.jpg.png beside a.jpg), so look again until all differ.
        shared = [s for claim in claims.values() if len(claim) > 1 for s in claim]
        if not shared:
            return [Job(source, folder / target) for source, target in targets.items()]
        targets.update((s, Path(f"{s.relative_to(root)}{suffix}")) for s in shared)


class Made(NamedTuple):
    """What was made for one job."""

    pixels: int
    size: int = 0  # bytes of the file


@dataclass(frozen=True)
class Outcome:
    """How one job ended; without anything made and without a reason, its output was there already."""

    made: Made | None = None
    reason: str = ""  # why it failed
    hopeless: bool = False  # its neighbours would fail as well


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
    with tqdm(total=len(jobs), unit="picture", disable=None if len(jobs) > 1 and sys.stderr else True) as bar:

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
                from ugicm.workers import share

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
