"""Records of a run: metrics.jsonl is the truth, TensorBoard mirrors it, a progress bar or plain lines show it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ugicm.atomic import replacing


class Records:
    """Writes events of a run that starts, or continues, at ``first_step``. Later lines of a file there already are
    dropped: their steps are computed again. Of a run that begins (``first_step`` 0) all records are new: what lies
    there is of one that ended before it had saved anything."""

    def __init__(self, folder: Path, first_step: int, steps: int, active: bool = True):
        self.active, self.steps = active, steps
        self._bar = self._board = self._lines = None
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        path, board = folder / "metrics.jsonl", folder / "tensorboard"
        if first_step == 0:
            path.unlink(missing_ok=True)
            shutil.rmtree(board, ignore_errors=True)
        if path.exists():
            kept = [line for line in path.read_text().splitlines(True) if _step_of(line) <= first_step]
            with replacing(path) as temporary:
                temporary.write_text("".join(kept))
        self._lines = path.open("a")
        self._board = SummaryWriter(str(board), purge_step=first_step + 1)
        self._first = first_step
        self.start_clock()
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=first_step, dynamic_ncols=True, unit="step")

    def start_clock(self) -> None:
        """Steps begin now: what was before does not count in how long they take."""
        self._started = time.monotonic()

    def progress(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        if self.active:
            tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """One line of metrics.jsonl; numbers also go to TensorBoard as ``kind/name``."""
        if not self.active:
            return
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._lines.write(json.dumps({"event": kind, "step": step, **rounded}) + os.linesep)
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def summary(self, step: int, values: dict[str, float]) -> None:
        """The few numbers of a step that are shown on the terminal."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
            return
        pace = (time.monotonic() - self._started) / max(1, step - self._first)
        left = int(pace * (self.steps - step))
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        self.say(f"step {step}/{self.steps}  {numbers}  {pace:.3f} s/step  {left // 3600}:{left // 60 % 60:02d} h left")

    def images(self, name: str, step: int, grid: Tensor) -> None:
        """An image [3, H, W] in [0, 1] for TensorBoard."""
        if self.active:
            self._board.add_image(name, grid, step)

    def close(self) -> None:
        if self.active:
            self._lines.close()
            self._board.close()
            if self._bar is not None:
                self._bar.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by a crash
        return sys.maxsize


class Meter:
    """Sums of named values over steps. Tensors stay where they are until :meth:`means` is asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def add(self, name: str, total: Tensor, count: float = 1) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Mean of every name; one transfer from the device."""
        if not self.sums:
            return {}
        values = torch.stack([s.float() for s in self.sums.values()]).cpu().tolist()
        return {name: value / self.counts[name] for name, value in zip(self.sums, values)}


class Stopwatch:
    """Time by phase. On a GPU phases are marked by events, which are only waited for when read."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.reset()

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reset(self) -> None:
        self.laps: list[tuple[str, Any]] = [("", self._now())]

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to ``phase``."""
        self.laps.append((phase, self._now()))

    def shares(self) -> dict[str, float]:
        """Phase -> share of the time since the last reset."""
        if self.cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (_, start), (phase, end) in zip(self.laps, self.laps[1:]):
            taken = start.elapsed_time(end) / 1e3 if self.cuda else end - start
            seconds[phase] = seconds.get(phase, 0.0) + taken
        total = sum(seconds.values()) or 1.0
        return {phase: s / total for phase, s in seconds.items()}
