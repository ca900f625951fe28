"""Exceptions of the package, and helpers that format them. All exceptions are subclasses of ``ValueError``."""

from __future__ import annotations

import re
from collections.abc import Iterable


class UgicmError(ValueError):
    """Base class of all exceptions that the package raises on purpose."""


class StreamError(UgicmError):
    """A bitstream is corrupt, truncated, of an unsupported version, or was written by another model."""


class CheckpointError(UgicmError):
    """A checkpoint is invalid: another kind of file, wrong shapes, missing tensors, or values that are not finite."""


class ConfigError(UgicmError):
    """A configuration has an unknown key, a value of the wrong type or range, or values that contradict each other."""


class ImageError(UgicmError):
    """An image file cannot be read or written. The message names the file."""


class UsageError(UgicmError):
    """A command is invalid as given. Raised before anything is written."""


class MissingPackageError(UgicmError, ImportError):
    """An optional package is not installed. The message names the extra of the project that installs it."""


def printable(text: str) -> str:
    """Return text on one line, with control characters and what is not Unicode replaced by escapes.

    Names of files may contain any bytes.
    """
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.encode(errors="backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def first_of(names: Iterable[str], count: int = 3) -> str:
    """Return the first ``count`` names as text, followed by the number of names left out."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def error_message(error: Exception) -> str:
    """Return an error's message on one line. Messages of the operating system begin with the file name."""
    if isinstance(error, OSError) and error.filename:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(str(error)) if isinstance(error, UgicmError) else first_line(error)
