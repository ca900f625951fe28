"""What commands share: their parser, the numbers and devices they accept, and how they end.

Importing this module is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ugicm.errors import CheckpointError, ConfigError, ImageError, UgicmError, UsageError, described, first_line

# What is wrong with these lies in the command as it was given, and is found before anything is done.
_SENSELESS = (CheckpointError, ConfigError, ImageError, UsageError, FileNotFoundError, NotADirectoryError)


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of its texts as they are, and complains in one line."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """An argument's type: an integer of 1 or more."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """An argument's type: an integer of 0 or more."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected an integer of {least} or more, got {text}")
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
    """An argument's type: two sides of an image, ``order`` being HEIGHTxWIDTH or WIDTHxHEIGHT."""

    def parsed(text: str) -> tuple[int, int]:
        first, _, second = text.partition("x")
        try:
            return positive(first), positive(second)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"expected {order} such as 512x768, got {text}") from None

    return parsed


def spread(count: int, of: int) -> list[int]:
    """``count`` indices (or all) evenly spread over ``range(of)``."""
    count = min(count, of)
    return sorted({round(i * (of - 1) / max(count - 1, 1)) for i in range(count)})


def check_device(name: str) -> None:
    """Raises UsageError for a device that PyTorch does not know or this machine does not have."""
    import torch

    try:
        torch.zeros(1, device=name).item()  # read back: "meta" makes tensors, but holds no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"device {name!r} cannot be used: {first_line(error)}") from None


def pick_device(name: str | None = None) -> str:
    """The device asked for; without a name, or for "auto", a GPU where there is one, else the CPU. Under torchrun each
    process takes its own GPU. Raises UsageError for a device that cannot be used."""
    import torch

    if name in (None, "auto"):
        count = torch.cuda.device_count()
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}" if count else "cpu"
    check_device(name)
    return name


def guarded(main: Callable[[], int], prog: str | None = None, interrupted: str = "interrupted") -> int:
    """Do what a command does. Returns its exit status: 0 done, 1 something failed, 2 the command makes no sense as
    given (or needs a package that is not installed), 130 interrupted.

    ``main`` returns 0 or 1; what it raises is said in one line, after ``prog`` (default: the script's name). What is
    not raised on purpose is a bug, and leaves its traceback. ``interrupted``: what is said after Ctrl-C.
    """
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, as they are imported
    try:
        return main()
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        said, status = interrupted, 130
    except RuntimeError as error:  # Python 3.11 makes one of Ctrl-C within a class that is being defined
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        said, status = interrupted, 130
    except ModuleNotFoundError as error:
        said, status = f"error: this needs {error.name}: pip install 'ugicm[train,eval]'", 2
    except (UgicmError, OSError) as error:
        said, status = f"error: {described(error)}", 2 if isinstance(error, _SENSELESS) else 1
    if status == 1 or os.environ.get("RANK", "0") == "0":  # of torchrun's processes, all of which say the same
        print(f"{prog or Path(sys.argv[0]).name}: {said}", file=sys.stderr)
    return status
