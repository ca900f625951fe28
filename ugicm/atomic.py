"""Write files completely or not at all.

A file is written under the hidden name ``.HOST-PID-N.ugicm-part`` in the folder of its target, and renamed when it is
complete. A killed run leaves at most such temporary files, which the next run removes. Importing this module is quick:
only the standard library is needed.
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
from collections.abc import Iterable, Iterator
from pathlib import Path

from ugicm.errors import UgicmError

STDIO = Path("-")  # stands for standard input and output
_DEVICE_FOLDERS = (Path("/dev"), Path("/dev/fd"))
_PART_SUFFIX = ".ugicm-part"
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_numbers = itertools.count()


class WriteError(UgicmError):
    """A file cannot be written.

    Attributes:
        fatal: whether other files would fail for the same reason, as on a full disk.
    """

    def __init__(self, path: Path, error: OSError):
        not_a_folder = error.errno in (errno.ENOTDIR, errno.EEXIST)
        super().__init__(f"{path}: cannot be written: {'not a folder' if not_a_folder else error.strerror or error}")
        self.fatal = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds, and is removed if it raises.

    The folder of ``path`` is created if it is missing. Raises WriteError if the operating system refuses to write.
    """
    path = Path(path)
    temporary = path.parent / _part_name()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise WriteError(path, error) from None
        raise


def _part_name() -> str:
    return f".{_HOST}-{os.getpid()}-{next(_numbers)}{_PART_SUFFIX}"


def write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically. Devices and pipes are written into directly. Raises WriteError."""
    path = Path(path)
    if is_special(path):
        try:
            if path == STDIO:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                return
            with open(path, "ab") as file:  # append: /dev/stdout may be a regular file, which "wb" would truncate
                file.write(data)
        except OSError as error:
            raise WriteError(path, error) from None
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def is_special(path: Path) -> bool:
    """Return whether ``path`` is a device or a pipe, which must be written into rather than replaced."""
    if path == STDIO:
        return True
    regular = os.path.isfile(path) and path.parent not in _DEVICE_FOLDERS  # /dev/stdout may be redirected to a file
    return os.path.exists(path) and not regular and not os.path.isdir(path)


def why_not_writable(folder: Path) -> str | None:
    """Return why files cannot be written into ``folder``, which need not exist yet, or None if no reason is known."""
    folder = folder.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"no permission to write in {existing}"


def prepare_folders(targets: Iterable[Path]) -> None:
    """Create the folders of ``targets``, check that they are writable, and remove temporary files of killed runs.

    Raises WriteError naming the first folder that is not writable.
    """
    for folder in sorted({target.parent for target in targets if not is_special(target)}):
        probe = folder / _part_name()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WriteError(folder, error) from None
        remove_stale(folder)


def remove_stale(folder: Path) -> None:
    """Remove temporary files in ``folder`` that are older than a day or belong to dead processes of this machine."""
    for part in folder.glob(f".*{_PART_SUFFIX}"):
        host, _, rest = part.name[1:].partition("-")
        process = rest.partition("-")[0]
        with contextlib.suppress(OSError):
            old = part.stat().st_mtime < time.time() - 86400
            if old or host == _HOST and process.isdecimal() and not _is_alive(int(process)):
                part.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
