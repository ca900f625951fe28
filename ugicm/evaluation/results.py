"""Results files, and journals of unfinished measurements.

A results file has CompressAI's schema, ``{name, description, results: {metric: [per rate point]}}``, plus ``meta``
(versions, device, threads, command, dataset) and ``per_image``. Averages are means over images, whatever their size.
A value that does not exist (MS-SSIM of a small image) is null and excluded from averages; ``undefined`` counts such
images by metric.
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
from ugicm.errors import printable
from ugicm.revision import revision

_LIBRARIES = ("torch", "torchvision", "constriction", "compressai", "numpy", "pillow", "pytorch-msssim")


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def undefined(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, int]:
    """Return the number of records without a value, for the metrics that have such records."""
    counts = {metric: sum(record[metric] is None for record in records) for metric in metrics}
    return {metric: count for metric, count in counts.items() if count}


def rate_points(records: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str]) -> dict[str, list]:
    """Average records into one rate point for each value of the key ``by``, in increasing order."""
    table: dict[str, list] = {by: sorted({record[by] for record in records})}
    for metric in metrics:
        table[metric] = [mean(r[metric] for r in records if r[by] == point) for point in table[by]]
    return table


def write(path: str | os.PathLike, name: str, description: str, results: Mapping[str, Sequence], **more: Any) -> None:
    """Write a results file atomically. ``more`` holds further keys, such as ``meta`` and ``per_image``."""
    document = {"name": name, "description": description, "results": results, **more}
    atomic.write(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a results file of ugicm or CompressAI. Raises ValueError for any other file."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(document["results"], dict):
            return document
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f"{os.fspath(path)}: not a results file (a JSON object with 'results')")


class Journal:
    """Records by name in an append-only file of JSON lines.

    Lines that are not records are ignored, such as the last one of an interrupted run.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records: dict[str, Any] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._line_open = not text.endswith("\n") and text != ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                name, record = json.loads(line)
                self.records[name] = record

    def add(self, records: Mapping[str, Any]) -> None:
        """Append records to the file."""
        self.records.update(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * self._line_open + "".join(f"{json.dumps(item)}\n" for item in records.items()))
        self._line_open = False


def environment(device: Any = "cpu") -> dict[str, Any]:
    """Return how something was measured: versions, processor, threads, device, revision, command and time."""
    import torch

    device = torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "ugicm": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _installed_version(name))},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device) + (f" ({gpu})" if gpu else ""),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _installed_version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """Return rows as aligned text: the first column left, others right, None as a dash."""
    cells = [list(heads)] + [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in cells]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
