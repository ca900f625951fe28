"""Results files: CompressAI's ``{name, description, results: {metric: [per rate point]}}``, with provenance; and
journals, which keep what is measured until then.

Besides CompressAI's keys a file holds ``meta`` (versions, device, threads, command, data set) and ``per_image``
(what the averages are of). Averages are over images, each counting once. A value that does not exist (MS-SSIM of
a small image, the PSNR of an exact one) is null and is left out of averages.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ugicm import __version__, atomic
from ugicm.revision import revision

_LIBRARIES = ("torch", "torchvision", "compressai", "numpy", "pillow", "pytorch-msssim")


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that exist; None where none does."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def finite(value: float | None) -> float | None:
    """``value`` as JSON can hold it: None for what is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def rate_points(records: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str]) -> dict[str, list]:
    """Average ``records`` into one rate point for each value of the key ``by``, in increasing order."""
    table: dict[str, list] = {by: sorted({record[by] for record in records})}
    for metric in metrics:
        table[metric] = [mean(r[metric] for r in records if r[by] == point) for point in table[by]]
    return table


def write(path: str | os.PathLike, name: str, description: str, results: Mapping[str, Sequence], **more: Any) -> None:
    """Write a results file, whole or not at all. ``more``: ``meta``, ``per_image`` and the like."""
    document = {"name": name, "description": description, "results": results, **more}
    atomic.write(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a results file, ours or CompressAI's. Raises ValueError naming the file where it is neither."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(document["results"], dict):
            return document
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f"{os.fspath(path)}: not a results file (a JSON object with 'results')")


class Journal:
    """Records by name, in a file that only grows. A line that does not hold one, as where an interruption cut it off,
    does not count. Raises OSError or ValueError for a file that cannot be read as text."""

    def __init__(self, path: Path):
        self.path = path
        self.records: dict[str, Any] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self._cut_off = not text.endswith("\n") and text != ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                name, record = json.loads(line)
                self.records[name] = record

    def add(self, records: Mapping[str, Any]) -> None:
        """Append records; on disk when this returns."""
        self.records.update(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * self._cut_off + self.lines(records))
        self._cut_off = False

    @staticmethod
    def lines(records: Mapping[str, Any]) -> str:
        """What a journal's file says of records."""
        return "".join(f"{json.dumps(item)}\n" for item in records.items())


def environment(device: Any = "cpu") -> dict[str, Any]:
    """Where and how something was measured: versions, processor, threads, device, revision, command, time."""
    import torch

    device = torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "ugicm": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device) + (f" ({gpu})" if gpu else ""),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """Rows as aligned text; numbers to the right, None as a dash."""
    cells = [list(heads)] + [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines = []
    for row in cells:
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
