"""Logs of a training run: metrics.jsonl, TensorBoard, and a progress bar or plain lines on the terminal."""

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
    """Writer of the logs of a run.

    Args:
        folder: the run's folder.
        first_step: step that the run starts or resumes from. Later records of existing logs are removed, because their
            steps are repeated; with 0 existing logs are deleted.
        steps: number of steps of the whole run.
        active: False on all processes but the main one: nothing is written.
    """

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
        self.restart_clock()
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=first_step, dynamic_ncols=True, unit="step")

    def restart_clock(self) -> None:
        """Exclude the time so far from the average time per step."""
        self._started = time.monotonic()

    def progress(self, step: int) -> None:
        """Move the progress bar to ``step``."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def message(self, text: str) -> None:
        """Print to stderr, above the progress bar."""
        if self.active:
            tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Write one line of metrics.jsonl, and its numbers to TensorBoard as ``kind/name``."""
        if not self.active:
            return
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._lines.write(json.dumps({"event": kind, "step": step, **rounded}) + os.linesep)
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def summary(self, step: int, values: dict[str, float]) -> None:
        """Show the main numbers of a step on the terminal."""
        if not self.active:
            return
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
            return
        pace = (time.monotonic() - self._started) / max(1, step - self._first)
        left = int(pace * (self.steps - step))
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        remaining = f"{left // 3600}:{left // 60 % 60:02d} h left"
        self.message(f"step {step}/{self.steps}  {numbers}  {pace:.3f} s/step  {remaining}")

    def images(self, name: str, step: int, grid: Tensor) -> None:
        """Write an image [3, H, W] in [0, 1] to TensorBoard."""
        if self.active:
            self._board.add_image(name, grid, step)

    def close(self) -> None:
        """Close the files and the progress bar."""
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
    """Sums of named values over steps, kept on their device until :meth:`means`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def add(self, name: str, total: Tensor, count: float = 1) -> None:
        """Add a sum of ``count`` values."""
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        """Return the mean of every name, with one transfer from the device."""
        if not self.sums:
            return {}
        values = torch.stack([s.float() for s in self.sums.values()]).cpu().tolist()
        return {name: value / self.counts[name] for name, value in zip(self.sums, values)}


class Stopwatch:
    """Time by phase. On a GPU, phases are marked by events that are only waited for in :meth:`shares`."""

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
        """Start again."""
        self._started = time.monotonic()
        self.laps: list[tuple[str, Any]] = [("", self._now())]

    @property
    def seconds(self) -> float:
        """Seconds since the last reset."""
        return time.monotonic() - self._started

    def lap(self, phase: str) -> None:
        """Attribute the time since the last lap to ``phase``."""
        self.laps.append((phase, self._now()))

    def shares(self) -> dict[str, float]:
        """Return the share of each phase in the time from the last reset to the last lap."""
        if self.cuda:
            torch.cuda.synchronize()
        durations: dict[str, float] = {}
        for (_, start), (phase, end) in zip(self.laps, self.laps[1:]):
            duration = start.elapsed_time(end) / 1e3 if self.cuda else end - start
            durations[phase] = durations.get(phase, 0.0) + duration
        total = sum(durations.values()) or 1.0
        return {phase: duration / total for phase, duration in durations.items()}
