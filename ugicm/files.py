"""Find input files and plan the names of output files.

Importing this module is quick: only the standard library is needed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ugicm.atomic import is_special
from ugicm.errors import UsageError

STREAM_SUFFIX = ".ugic"
# Files in a folder that count as images. A file that is named explicitly may have any extension.
IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff",
    ".webp",
)  # fmt: skip


def find(folder: str | os.PathLike, suffixes: Sequence[str]) -> list[Path]:
    """Return the sorted paths of all files below ``folder`` that have one of ``suffixes``, in any case.

    Hidden files and folders, devices and pipes are left out. Links to folders are not followed.

    Raises:
        UsageError: there is no such file.
        OSError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in suffixes]
    found = [path for path in found if not is_special(path)]  # opening a pipe would block
    if not found:
        raise UsageError(f"{os.fspath(folder)}: no files to work on in this folder (looked for {' '.join(suffixes)})")
    return sorted(found)


@dataclass(frozen=True)
class Job:
    """An input file and the output file to make from it."""

    source: Path
    target: Path

    @property
    def target_exists(self) -> bool:
        """Whether writing the target would replace a file or link. Devices and pipes are not replaced."""
        return not is_special(self.target) and (os.path.isfile(self.target) or os.path.islink(self.target))


def plan_jobs(
    source: str | os.PathLike, target: str | os.PathLike | None, suffixes: Sequence[str], suffix: str
) -> list[Job]:
    """Return the jobs for the input and output arguments of a command.

    A source file is converted to the file ``target``, into the folder ``target``, or to a file beside the source if
    there is no target. A source folder is converted to the folder ``target``, which gets the same tree; see
    :func:`pair`.

    Args:
        source: input file or folder.
        target: output file or folder.
        suffixes: extensions of input files in a folder.
        suffix: extension of output files.

    Raises UsageError if there is no input, or if an output would replace an input.
    """
    if not os.fspath(source) or target is not None and not os.fspath(target):
        raise UsageError("an empty name was given for a file or folder")  # Path("") is the current folder
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
    """Return jobs that convert files below ``root`` to files in the same tree below ``folder``.

    ``suffix`` replaces the extension of the source. Sources that would share a target (a.jpg, a.png) keep their
    extension before it (a.jpg.ugic, a.png.ugic).
    """
    targets = {source: source.relative_to(root).with_suffix(suffix) for source in sources}
    while True:
        by_target = defaultdict(list)
        for source, target in targets.items():
            by_target[target].append(source)
        # A long name may collide with another short one (a.jpg.png beside a.jpg): repeat until all are different.
        shared = [source for group in by_target.values() if len(group) > 1 for source in group]
        if not shared:
            return [Job(source, folder / target) for source, target in targets.items()]
        targets.update((source, Path(f"{source.relative_to(root)}{suffix}")) for source in shared)
