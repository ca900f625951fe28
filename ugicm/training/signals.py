"""SIGTERM and SIGINT end a training run after a step, with a checkpoint."""

from __future__ import annotations

import os
import signal

from ugicm.training.distributed import World

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP_CHECK = 4  # steps between agreements of several processes to stop: they wait for the device


class StopSignals:
    """Context manager that records SIGTERM and SIGINT in ``received``, for the loop to stop after the step."""

    def __init__(self, world: World):
        self.world, self.received = world, ""

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number).name
        if self.world.main:  # print() is not reentrant
            when = "this step" if self.world.size == 1 else f"at most {STOP_CHECK} steps"
            os.write(2, f"\n{self.received}: stopping, with a checkpoint, after {when} or a validation\n".encode())


def ignore_stop_signals(worker: int) -> None:
    """Ignore signals sent to the whole process group: the main process still needs the loader for its last step."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
