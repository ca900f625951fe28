"""Names and files of shards, on local disks and in object storage, through fsspec.

A URL such as ``s3://bucket/name.tar`` needs the driver of its protocol (``s3fs``, ``gcsfs``). A name without a protocol
is a local path.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ugicm import atomic
from ugicm.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_shard(name: str) -> bool:
    """Return whether a name or pattern has an extension of shards."""
    return name.lower().endswith(SHARD_SUFFIXES)


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL and the path in it.

    Raises UsageError for an unknown protocol, MissingPackageError if the protocol's driver is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise MissingPackageError(f"{url}: {error}") from None
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None


def absolute(name: str) -> str:
    """Return a URL unchanged, and the absolute path for a local name, with slashes on all systems."""
    return name if "://" in name else Path(os.path.abspath(name)).as_posix()


def is_local(url: str) -> bool:
    """Return whether a URL is a path of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(file_system(url)[0], LocalFileSystem)


def expand(pattern: str) -> list[str]:
    """Return the URLs that a pattern stands for. Local paths become absolute.

    ``{000..999}`` stands for numbers with as many digits. ``*``, ``?`` and ``[...]`` stand for existing files.

    Raises UsageError if no file matches.
    """
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        return [url for n in numbers for url in expand(pattern[: found.start()] + n + pattern[found.end() :])]
    url = absolute(pattern)
    if not any(character in pattern for character in "*?["):
        return [url]
    fs, path = file_system(url)
    urls = sorted(fs.glob(path))
    if not urls:
        raise UsageError(f"{pattern}: no such shards")
    return urls if "://" not in pattern else [fs.unstrip_protocol(name) for name in urls]


def size_of(url: str) -> int | None:
    """Return the size of a file in bytes, or None if there is no such file. Raises OSError."""
    fs, path = file_system(url)
    try:
        return fs.info(path)["size"]
    except FileNotFoundError:
        return None


def open_file(url: str) -> BinaryIO:
    """Open a file to read its bytes, at any position. Raises OSError."""
    fs, path = file_system(url)
    return fs.open(path, "rb")


@contextlib.contextmanager
def replacing(url: str) -> Iterator[Path]:
    """Yield the path of a temporary local file that becomes the file ``url`` if the block succeeds.

    Object stores show an object when it is complete. Raises OSError or WriteError if it cannot be written.
    """
    fs, path = file_system(url)
    if is_local(url):
        with atomic.replacing(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="ugicm-") as folder:
        yield Path(folder, "shard")
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.put_file(os.path.join(folder, "shard"), path)
