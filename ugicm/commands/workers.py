"""Numbered tasks on several processes, forked from this one, so that what it has loaded is there without loading.

Needs a system that forks. Ctrl-C is the main process's affair: the others are told to leave, and clean up as they do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ugicm.errors import UgicmError

T = TypeVar("T")
PATIENCE = 10  # seconds that a process gets to clean up before it is killed
_told_to_leave = threading.Event()  # of this process


def available() -> bool:
    """Whether this system can fork processes that go on computing (macOS can, but its libraries then crash)."""
    return sys.platform == "linux"


def apart(task: Callable[[], T]) -> T:
    """What ``task`` returns or raises, in a process that ends with it: what it did to that process is gone.

    Raises UgicmError where that process dies.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def do() -> None:
        _leave_when_told()
        try:
            there.send((task(), None))
        except Exception as error:
            there.send((None, error))

    with _interrupts_blocked():
        process = context.Process(target=do, daemon=True)
        process.start()
        there.close()
    try:
        result, error = here.recv()
        process.join(PATIENCE)
    except EOFError:
        process.join(PATIENCE)
        raise UgicmError(_how_it_ended(process)) from None
    finally:
        _dismiss({here: process})
        here.close()
    if error:
        raise error
    return result


def share(
    count: int,
    task: Callable[[int], T],
    workers: int,
    begin: Callable[[], object],
    lost: Callable[[str], T],
    report: Callable[[int, T], bool],
) -> None:
    """Do tasks 0 ... ``count`` - 1, in this order, as processes become free.

    Args:
        task: runs in a worker; what it returns is pickled. An exception in it ends everything with a RuntimeError.
        begin: runs once in each worker before its first task; an exception in it ends everything, too, a UgicmError as
            it is.
        lost: makes the outcome of a task whose process has died, from a line saying so.
        report: runs here, for each task as it ends; True stops the rest.

    Raises KeyboardInterrupt after what is done has been reported and the workers have left. Warnings of the workers
    are issued here.
    """
    context = multiprocessing.get_context("fork")
    crew: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, int] = {}
    handed_out = 0

    def hand_out(channel: Connection) -> None:
        nonlocal handed_out
        if handed_out < count:
            busy[channel] = handed_out
            with contextlib.suppress(BrokenPipeError):  # it has died: reading from it will tell
                channel.send(handed_out)
            handed_out += 1

    def engage() -> Connection:
        with _interrupts_blocked():  # until a new process has its own handlers
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, [*crew, here], task, begin), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the stream
            crew[here] = process
        return here

    def collect(channel: Connection) -> bool:
        number = busy.pop(channel)
        try:
            outcome, mistake, warned = channel.recv()
        except (EOFError, ConnectionError):
            process = crew[channel]
            process.join(PATIENCE)
            if report(number, lost(_how_it_ended(process))):
                return True
            if handed_out < count:  # another takes its place: what is left must not wait for fewer and fewer
                hand_out(engage())
            return False
        for text in warned:
            warnings.warn(text, stacklevel=1)  # from one place: filters show each text once, whoever met it
        if isinstance(mistake, UgicmError):
            raise mistake
        if mistake:
            raise RuntimeError(f"in a worker process:\n{mistake}")
        hand_out(channel)
        return report(number, outcome)

    try:
        for _ in range(min(workers, count)):
            hand_out(engage())
        while busy:
            for channel in wait(list(busy)):
                if collect(channel):
                    return
    except KeyboardInterrupt:
        _dismiss(crew)
        for channel, number in busy.items():  # what was ready a moment before
            with contextlib.suppress(EOFError, ConnectionError):
                outcome, mistake, _ = channel.recv()
                if not mistake:
                    report(number, outcome)
        raise
    finally:
        _dismiss(crew)
        for channel in crew:
            channel.close()


def _serve(channel: Connection, foreign: list[Connection], task: Callable[[int], Any], begin: Callable) -> None:
    """The life of a worker: until there is nothing more to read, which is also what happens when the main one dies."""
    _leave_when_told()
    for other in foreign:
        other.close()  # held open here, it would hide the main process's end from the others
    warned: list[str] = []
    warnings.showwarning = lambda message, *_, **__: warned.append(str(message))
    never_begun = _mistake_in(begin)[1]
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            number = channel.recv()
            outcome, mistake = (None, never_begun) if never_begun else _mistake_in(task, number)
            if _told_to_leave.is_set():  # but something took the exception for its own
                sys.exit(1)
            channel.send((outcome, mistake, warned))
            warned.clear()


def _mistake_in(call: Callable[..., T], *arguments: Any) -> tuple[T | None, UgicmError | str]:
    """What a call returns, and what was wrong: a UgicmError, or the traceback of another exception; "" for nothing."""
    try:
        return call(*arguments), ""
    except UgicmError as error:
        return None, error
    except Exception:
        return None, traceback.format_exc()


def _leave_when_told() -> None:
    """In a new process: Ctrl-C is the main one's affair, which ends this one by SIGTERM."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _leave(*_: object) -> None:
    _told_to_leave.set()
    sys.exit(1)  # an exception, so that half-written files are removed on the way


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dismiss(crew: dict[Connection, BaseProcess]) -> None:
    for process in crew.values():
        process.terminate()
    for process in crew.values():
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


def _how_it_ended(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with status {code}"
