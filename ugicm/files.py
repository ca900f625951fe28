"""Which files a command reads, and under which names its outputs go.

Importing this module is quick: only the standard library is needed.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ugicm.atomic import is_special
from ugicm.errors import UsageError

STREAM_SUFFIX = ".ugic"
# What counts as an image inside a folder; a file that is named itself may have any extension.
IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff",
    ".webp",
)  # fmt: skip


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
