"""Command lines: the argument parser, argument types, devices, and exit statuses shared by all commands.

Importing this module is quick: PyTorch is imported only to check a device.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ugicm.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    MissingPackageError,
    UgicmError,
    UsageError,
    error_message,
    first_line,
)  # fmt: skip
from ugicm.extras import how_to_install

PREFERENCES = {"human": 0.0, "machine": 1.0}
# Errors in the command line or in the files that it names: exit status 2.
_INPUT_ERRORS = (
    CheckpointError, ConfigError, ImageError, MissingPackageError, UsageError, FileNotFoundError, NotADirectoryError,
)  # fmt: skip


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that keeps line breaks in help texts and reports errors on one line."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        from difflib import get_close_matches

        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^\s'=]+)", message)
        near = get_close_matches(wrong[1], self._words(), 1) if wrong else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} (see {self.prog} --help)\n")

    def _words(self) -> list[str]:
        """Return the options of this parser, its commands and their options."""
        words = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                words += [word for name, sub in action.choices.items() for word in (name, *sub._words())]
        return words


def positive(text: str) -> int:
    """Argument type: an integer of 1 or more."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """Argument type: an integer of 0 or more."""
    return _integer(text, 0)


def _integer(text: str, minimum: int) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected an integer of {minimum} or more, got {text}")
    return int(text)


def unit(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def parse_preference(text: str) -> float:
    """Argument type: a preference, as ``human``, ``machine`` or a number from 0 (human) to 1 (machine)."""
    try:
        return PREFERENCES[text] if text in PREFERENCES else unit(text)
    except argparse.ArgumentTypeError:
        expected = "human, machine or a number from 0 (human) to 1 (machine)"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}") from None


def parse_preferences(text: str) -> list[float | Path]:
    """Argument type: one or several preferences, numbers, names or maps, separated by commas."""
    return (
        [parse_preference_or_map(text)] if Path(text).is_file() else list(map(parse_preference_or_map, text.split(",")))
    )


def join_preferences(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which the names and numbers that follow ``-p`` are one argument."""
    joined: list[str] = []
    for text in arguments:
        if len(joined) > 1 and joined[-2] in ("-p", "--preference") and _is_preference(text):
            joined[-1] += f",{text}"
        else:
            joined.append(text)
    return joined


def _is_preference(text: str) -> bool:
    try:
        parse_preference(text)
    except argparse.ArgumentTypeError:
        return False
    return True


def parse_bytes(text: str) -> float:
    """Argument type: a number of bytes, as 40000, 40k or 1.5M."""
    factor = {"k": 1e3, "m": 1e6}.get(text[-1:].lower(), 1)
    return above_zero(text if factor == 1 else text[:-1]) * factor


def above_zero(text: str) -> float:
    """Argument type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def parse_color(text: str) -> str:
    """Argument type: a color by name or as #RRGGBB."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a color such as white or #RRGGBB, got {text}") from None
    return text


def parse_region(text: str) -> tuple[int, int, int, int]:
    """Argument type: a part of an image as X,Y,WIDTH,HEIGHT in pixels."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y,WIDTH,HEIGHT in pixels, got {text}") from None
    return x, y, width, height


def parse_preference_or_map(text: str) -> float | Path:
    """Argument type: a preference as :func:`parse_preference` accepts it, or the path of a preference map."""
    try:
        return parse_preference(text)
    except argparse.ArgumentTypeError as error:
        if Path(text).is_file():
            return Path(text)
        raise argparse.ArgumentTypeError(f"{error}: neither a number nor an image file") from None


def sides(order: str) -> Callable[[str], tuple[int, int]]:
    """Argument type: the two sides of an image. ``order`` is "HEIGHTxWIDTH" or "WIDTHxHEIGHT", for error messages."""

    def parse(text: str) -> tuple[int, int]:
        first, _, second = text.partition("x")
        try:
            return positive(first), positive(second)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"expected {order} such as 512x768, got {text}") from None

    return parse


def spread(count: int, of: int) -> list[int]:
    """Return ``count`` indices (or all) evenly spread over ``range(of)``."""
    count = min(count, of)
    return sorted({round(i * (of - 1) / max(count - 1, 1)) for i in range(count)})


def check_device(name: str) -> None:
    """Raise UsageError if PyTorch does not know the device or the machine does not have it."""
    import torch

    try:
        torch.zeros(1, device=name).item()  # reading a value back also rejects "meta"
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"device {name!r} cannot be used: {first_line(error)}") from None


def pick_device(name: str | None = None) -> str:
    """Return the device to use: ``name``, or for None and "auto" a GPU if there is one, else the CPU.

    Under torchrun, "auto" assigns one GPU to each process. Raises UsageError if the device cannot be used.
    """
    import torch

    if name in (None, "auto"):
        count = torch.cuda.device_count()
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}" if count else "cpu"
    check_device(name)
    return name


def run_command(main: Callable[[], int], prog: str | None = None, interrupted: str = "interrupted") -> int:
    """Run a command and return its exit status.

    The status is what ``main`` returns (0: success, 1: something failed), or follows from what it raises:

    - 2: an error in the command line or in a file that it names, or a package that is not installed
    - 1: any other :class:`~ugicm.errors.UgicmError` or OSError, or a closed standard output
    - 130: KeyboardInterrupt

    These errors are printed as one line, under torchrun by the first process only if the status is 2 or 130. Other
    exceptions are bugs and propagate.

    Args:
        main: the command.
        prog: name that begins the line (default: name of the script).
        interrupted: message after Ctrl-C.
    """
    warnings.simplefilter("ignore", FutureWarning)  # raised by libraries as they are imported
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        return main()
    except BrokenPipeError:  # standard output was closed, as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        message, status = interrupted, 130
    except ModuleNotFoundError as error:
        message, status = f"error: this needs {error.name}: {how_to_install('dev')}", 2
    except (UgicmError, OSError) as error:
        message, status = f"error: {error_message(error)}", 2 if isinstance(error, _INPUT_ERRORS) else 1
    if status == 1 or os.environ.get("RANK", "0") == "0":
        print(f"{prog or Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return status
