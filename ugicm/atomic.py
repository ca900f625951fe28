"""Write files whole or not at all.

A file appears under its final name only when it is complete: it is written beside it under a hidden name
``.HOST-PID-N.ugicm-part`` first. A run that is killed leaves at most such a file, and the next one removes it.
Importing this module is quick: only the standard library is needed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import platform
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ugicm.errors import UgicmError

_OPEN = {Path("/dev/fd"), Path("/proc/self/fd")}  # folders of open files, by number
_DEVICES = {Path("/dev"), *_OPEN}
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_PART_SUFFIX = ".ugicm-part"
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_numbers = itertools.count()
# Errors that every further file would meet as well: a run stops there.
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class WriteError(UgicmError):
    """A file cannot be written. ``hopeless`` says that its neighbors cannot be either (a full disk)."""

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


def prepare(targets: Iterable[Path]) -> None:
    """Make the output folders, see that they can be written, and clear them of what killed runs left.

    Raises WriteError naming the first folder that cannot be written, before any work is done for it.
    """
    for folder in sorted({target.parent for target in targets if not is_special(target)}):
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
