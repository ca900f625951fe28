"""Helpers of the benchmark and stress tools: fresh processes, memory of a process (Linux only), progress lines."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

from ugicm.errors import UgicmError

P = ParamSpec("P")
T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module-level function in a new process and return its result.

    Raises:
        UgicmError: the process died.
        Exception: whatever ``function`` raises.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            raise UgicmError(f"the process running {function.__name__} died") from None


def run_python(
    *arguments: object,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a Python interpreter from the repository and return its standard output.

    Args:
        arguments: command-line arguments of the interpreter.
        python: the interpreter.
        environment: variables to add to the environment.
        stdin: text for standard input.

    Raises:
        UgicmError: the exit status is not 0. The message has the end of the standard error.
    """
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [python, *map(str, arguments)], input=stdin, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": search_path, **(environment or {})}, check=False,
    )  # fmt: skip
    if finished.returncode:
        reason = finished.stderr.strip()[-800:] or f"exit status {finished.returncode}"
        raise UgicmError(f"{' '.join(map(str, arguments))}: {reason}")
    return finished.stdout


def memory(key: str) -> int:
    """Return memory of this process in bytes, as Linux counts it.

    Args:
        key: ``VmRSS`` for resident memory, ``VmHWM`` for its peak since :func:`reset_peak`, ``VmSize`` for the
            address space.
    """
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def reset_peak() -> None:
    """Reset ``VmHWM`` to the present resident memory."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def log(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)
