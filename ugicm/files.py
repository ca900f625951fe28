"""Find input files and plan the names of output files.

Importing this module is quick: only the standard library is needed.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ugicm.atomic import STDIO, is_special
from ugicm.errors import UsageError, first_of

STREAM_SUFFIX = ".ugic"
# Formats that Pillow reads with a package: (name on PyPI, extensions) by the name it is imported by.
IMAGE_PACKAGES = {
    "pillow_heif": ("pillow-heif", (".heic", ".heif", ".hif")),
    "pillow_jxl": ("pillow-jxl-plugin", (".jxl",)),
}
# Files in a folder that count as images. A file that is named explicitly may have any extension.
IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff",
    ".webp", *(suffix for name, (_, suffixes) in IMAGE_PACKAGES.items() if find_spec(name) for suffix in suffixes),
)  # fmt: skip
# Extensions of images that cannot be read. Leaving one out is a failure.
OTHER_IMAGE_SUFFIXES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".eps", ".erf", ".exr", ".hdr", ".iiq", ".kdc", ".mef", ".mos",
    ".mrw", ".nef", ".nrw", ".orf", ".pef", ".psb", ".psd", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw",
    ".svg", ".svgz", ".x3f", ".xcf", *(suffix for _, suffixes in IMAGE_PACKAGES.values() for suffix in suffixes),
)).difference(IMAGE_SUFFIXES)  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
        found: sorted paths of the files looked for.
        left_out: number of other files by kind: extension, "hidden", "link to a folder" or "device".
    """

    found: list[Path]
    left_out: Counter[str]


def count_images(left_out: Counter[str]) -> int:
    """Return the number of images among the files left out, of formats that cannot be read."""
    return sum(count for kind, count in left_out.items() if kind in OTHER_IMAGE_SUFFIXES)


def describe_left_out(left_out: Counter[str]) -> str:
    """Return the kinds of files left out as text, with the packages that would read them."""
    kinds = [f"{count} {kind}" for kind, count in left_out.most_common()]
    packages = sorted(
        {package for package, suffixes in IMAGE_PACKAGES.values() if not left_out.keys().isdisjoint(suffixes)}
    )
    return first_of(kinds, 12) + (f" (try: pip install {' '.join(packages)})" if packages else "")


def list_files(folder: str | os.PathLike, suffixes: Sequence[str]) -> Listing:
    """List all files below ``folder`` by whether they have one of ``suffixes``, in any case.

    Hidden files and folders, devices and pipes are left out. Links to folders are not followed. Raises OSError if a
    folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found, left_out = [], Counter()
    for parent, folders, names in os.walk(folder, onerror=fail):
        left_out["link to a folder"] += sum(os.path.islink(os.path.join(parent, name)) for name in folders)
        left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            suffix = path.suffix.lower()
            if suffix not in suffixes:
                left_out[suffix or "without extension"] += 1
            elif is_special(path):  # opening a pipe would block
                left_out["device"] += 1
            else:
                found.append(path)
    return Listing(sorted(found), +left_out)


def find(folder: str | os.PathLike, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of :func:`list_files`.

    Raises:
        UsageError: there is no such file.
        OSError: a folder cannot be listed.
    """
    found = list_files(folder, suffixes).found
    if not found:
        raise UsageError(f"{os.fspath(folder)}: no files to work on in this folder (looked for {' '.join(suffixes)})")
    return found


@dataclass(frozen=True)
class Job:
    """An input file and the output file to make from it."""

    source: Path
    target: Path


def would_replace(target: Path) -> bool:
    """Return whether writing ``target`` would replace a file or link. Devices and pipes are not replaced."""
    return not is_special(target) and (os.path.isfile(target) or os.path.islink(target))


def read_bytes(path: Path) -> bytes:
    """Return the contents of an input file, or of standard input."""
    return sys.stdin.buffer.read() if path == STDIO else path.read_bytes()


def split_arguments(
    paths: Sequence[str], output: str | None, is_output: Callable[[str], bool]
) -> tuple[Sequence[str], str | None]:
    """Return inputs and output of the arguments ``IN [IN ...] [OUT]``, given the value of ``--output``.

    Without ``--output`` the last of several paths is the output if it is a folder or ``-``, if ``is_output`` says so,
    or if it is the second and does not exist or is a device.
    """
    *inputs, last = paths
    if output is not None or not inputs:
        return paths, output
    folder = Path(last).is_dir() or last.endswith(("/", os.sep))
    second = len(inputs) == 1 and (not os.path.exists(last) or is_special(Path(last)))
    return (inputs, last) if folder or second or last in ("-", "") or is_output(last) else (paths, None)


@dataclass(frozen=True)
class Plan:
    """What a command is to do.

    Attributes:
        jobs: one for every input file, with different targets.
        left_out: files in input folders that are not worked on.
        orphans: files in the output folder with the extension of outputs that are none of the targets.
        folder: whether an input is a folder.
    """

    jobs: list[Job]
    left_out: Counter[str] = field(default_factory=Counter)
    orphans: list[Path] = field(default_factory=list)
    folder: bool = False


def plan_jobs(sources: Sequence[str], target: str | None, suffixes: Sequence[str], suffix: str) -> Plan:
    """Plan the jobs for the input and output arguments of a command.

    A file is converted to the file ``target``, into the folder ``target``, or to a file beside it if there is no
    target; ``suffix`` replaces its extension. A folder is converted to the folder ``target``, which gets the same tree;
    there ``suffix`` is appended to the names of images, so that a.jpg and a.png remain apart. ``-`` is standard input
    or output.

    Args:
        sources: input files or folders. Of several, ``target`` is a folder.
        target: output file or folder.
        suffixes: extensions of input files in a folder.
        suffix: extension of output files.

    Raises UsageError if there is no input, if an output would replace an input, or if two inputs have the same output.
    """
    if "" in (*sources, target):
        raise UsageError("an empty name was given for a file or folder")  # Path("") is the current folder
    if len(sources) > 1 and "-" in (*sources, target):
        raise UsageError("- stands for one file: standard input and output cannot be used with several inputs")
    jobs, left_out, folders = [], Counter(), []
    for name in sources:
        source = _path(name)
        if source == STDIO or not source.is_dir():
            jobs.append(Job(source, _target_of(source, target, suffix, len(sources) > 1)))
            continue
        folder = _output_folder(source, target)
        listing = list_files(source, suffixes)
        if not listing.found:
            others = f"; left out: {describe_left_out(listing.left_out)}" if listing.left_out else ""
            raise UsageError(f"{source}: no files to work on in this folder (looked for {' '.join(suffixes)}{others})")
        jobs += [Job(path, folder / _renamed(path.relative_to(source), suffix)) for path in listing.found]
        left_out += listing.left_out
        folders.append(folder)
    _check_targets(jobs)
    targets = {job.target for job in jobs}
    existing = list_files(folders[0], [suffix]).found if folders and folders[0].exists() else []
    orphans = [path for path in existing if path not in targets]
    return Plan(jobs, left_out, orphans, bool(folders))


def _path(name: str) -> Path:
    """Return the path of an argument. ``./-`` is a file of this name, which Path would shorten to ``-``."""
    return Path(name) if name == "-" or Path(name) != STDIO else Path(name).absolute()


def _output_folder(source: Path, target: str | None) -> Path:
    if target is None or target == "-":
        raise UsageError(f"{source} is a folder: name an output folder as well")
    folder = Path(target)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{source} is a folder, but the output {folder} is a file")
    if folder.exists() and folder.samefile(source):
        raise UsageError(f"the output folder {folder} is the input folder: choose another")
    return folder


def _target_of(source: Path, target: str | None, suffix: str, several: bool) -> Path:
    if source != STDIO and not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if several and target is not None and Path(target).exists() and not Path(target).is_dir():
        raise UsageError(f"{target} is a file: several inputs need an output folder")
    if target is None:
        return STDIO if source == STDIO else source.with_suffix(suffix)
    into_folder = several or Path(target).is_dir() or target.endswith(("/", os.sep))
    if not into_folder:
        return _path(target)
    if source == STDIO:
        raise UsageError(f"{target} is a folder: name the output file of standard input")
    return Path(target, source.name).with_suffix(suffix)


def _renamed(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix) if path.suffix.lower() == STREAM_SUFFIX else Path(f"{path}{suffix}")


def _check_targets(jobs: Sequence[Job]) -> None:
    sources: dict[Path, Path] = {}
    for job in jobs:
        if job.target != STDIO and job.target.exists() and job.source != STDIO and job.target.samefile(job.source):
            raise UsageError(f"{job.target}: the output would replace the input: choose another name")
        if job.target in sources:
            raise UsageError(f"{sources[job.target]} and {job.source} have the same output, {job.target}: name outputs")
        sources[job.target] = job.source


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
