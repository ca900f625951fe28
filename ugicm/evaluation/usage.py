"""What commands that measure share: the numbers and devices they accept, and how their errors end.

Importing this module is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from ugicm.errors import UgicmError, first_line
from ugicm.files import UsageError


def positive(text: str) -> int:
    """An argument's type: a whole number of 1 or more."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """An argument's type: a whole number of 0 or more."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text}")
    return int(text)


def unit(text: str) -> float:
    """An argument's type: a number from 0 to 1, as qualities and preferences are."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def sides(order: str) -> Callable[[str], tuple[int, int]]:
    """An argument's type: two sides of a picture, ``order`` being HEIGHTxWIDTH or WIDTHxHEIGHT."""

    def parsed(text: str) -> tuple[int, int]:
        first, _, second = text.partition("x")
        try:
            return positive(first), positive(second)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"expected {order} such as 512x768, got {text}") from None

    return parsed


def check_device(name: str) -> None:
    """Raises UsageError for a device that PyTorch does not know or this machine does not have."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"device {name!r} cannot be used: {first_line(error)}") from None


def guarded(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a script's main: errors a user can mend are one line and exit status 2."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, as they are imported
    try:
        status = main(None)
    except (UgicmError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
