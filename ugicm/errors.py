"""The exceptions that users of the package meet. All are ``ValueError``: the input was not usable."""

from __future__ import annotations

from collections.abc import Iterable


class UgicmError(ValueError):
    """Base of every error this package raises on purpose."""


class StreamError(UgicmError):
    """A compressed stream is damaged, truncated, foreign, or belongs to another model."""


class CheckpointError(UgicmError):
    """A checkpoint cannot be used: not a checkpoint, wrong shapes, missing keys, or values that are not finite."""


class ConfigError(UgicmError):
    """A configuration has an unknown key, a value of the wrong type, or values that do not fit together."""


class ImageError(UgicmError):
    """An image file cannot be read. The message names the file."""


class UsageError(UgicmError):
    """What was asked for cannot be done as given; nothing has been read or written."""


def first_line(error: BaseException) -> str:
    """An error's message on one line (PyTorch's run over several)."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def first_of(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def described(error: Exception) -> str:
    """An error's message on one line; the system's begins with the file's name."""
    named = isinstance(error, OSError) and error.filename
    return f"{error.filename}: {error.strerror}" if named else first_line(error)
