"""What a piece of work needs: processes of its own to do it in, and what Linux knows of a process's memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``work``, a function of a module, in a new process: nothing that this one has loaded, compiled or kept
    serves it. Raises what it raises, and BrokenProcessPool if the process dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(work, *args, **kwargs).result()


def memory(key: str) -> int:
    """Bytes in use: "VmRSS" resident now, "VmHWM" at most since :func:`reset_peak`, "VmSize" of addresses."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def reset_peak() -> None:
    """Let VmHWM begin anew from what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
