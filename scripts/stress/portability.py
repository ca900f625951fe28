"""Proof that streams decode everywhere: written under one setting of the machine, read under every other.

A setting changes how floating point is computed: threads, instruction sets (PyTorch's own and oneDNN's), memory
layout, libraries, the version of PyTorch (another interpreter), the device. Every setting is a process of its own,
since most of them are read when PyTorch starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ugicm import atomic
from ugicm.errors import UgicmError


@dataclass(frozen=True)
class Setting:
    """How one process computes."""

    name: str
    threads: int = 1
    mkldnn: bool = True
    channels_last: bool = True
    fast: bool = True
    device: str = "cpu"
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)


def settings(others: Sequence[str] = (), cuda: bool = False) -> list[Setting]:
    """The settings to try; ``others``: interpreters whose environments hold other versions of PyTorch."""
    isa, onednn = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"
    chosen = [
        Setting("1 thread"),
        Setting("2 threads", threads=2),
        Setting("no vector instructions", environment={isa: "default", onednn: "SSE41"}),
        Setting("AVX2", environment={isa: "avx2", onednn: "AVX2"}),
        Setting("oneDNN off", mkldnn=False),
        Setting("channels first", channels_last=False),
        Setting("float32 transforms", fast=False),
    ]
    chosen += [Setting(f"interpreter {python}", python=python) for python in others]
    if cuda:
        chosen.append(Setting("CUDA", device="cuda"))
    return chosen


def check(
    checkpoint: str | None,
    images: Sequence[Path],
    qualities: Sequence[float],
    chosen: Sequence[Setting],
    folder: Path,
    progress=lambda line: None,
) -> dict:
    """Write every image at every quality under every setting, read every stream under every setting.

    Streams that are the same byte for byte are read once by each reader. As many settings are at work at a time as
    there are processors: much of a process's time is its start.

    Returns the report: per pair of settings the number of streams and of mismatches (a StreamError, or a y_hat
    that is not the writer's), and the closest approach of any scale to a bound of the table.
    """

    def under_all(task: dict) -> Iterator[tuple[Setting, dict]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from zip(chosen, pool.map(lambda setting: _run(setting, task, checkpoint, folder), chosen))

    written, settled = {}, {}
    task = {"mode": "write", "images": [str(p) for p in images], "qualities": list(qualities)}
    for setting, outcome in under_all(task):
        written[setting.name] = outcome
        progress(f"written under: {setting.name}")
    pairs, mismatches = [], 0
    content = {
        name: hashlib.blake2b(Path(name).read_bytes()).hexdigest()
        for outcome in written.values() for name in outcome["streams"]
    }  # fmt: skip
    first = {content[name]: name for name in reversed(content)}
    for reader, found in under_all({"mode": "read", "streams": list(first.values())}):
        symbols = {digest: found["symbols"][name] for digest, name in first.items()}
        for writer in chosen:
            streams = written[writer.name]["streams"]
            wrong = [name for name, expected in streams.items() if symbols[content[name]] != expected]
            mismatches += len(wrong)
            pairs.append({
                "writer": writer.name, "reader": reader.name, "streams": len(streams), "mismatches": len(wrong),
                "examples": wrong[:3],
            })  # fmt: skip
        settled[reader.name] = found["settled"]
        progress(f"read under: {reader.name}; {mismatches} mismatches so far")
    return {
        "mismatches": mismatches,
        "streams": sum(pair["streams"] for pair in pairs),
        "different_streams": len(first),
        "closest_to_a_bound": min(w["closest"] for w in written.values()),
        "settled_by_guard": settled,
        "versions": {name: w["torch"] for name, w in written.items()},
        "pairs": pairs,
    }


def _run(setting: Setting, task: dict, checkpoint: str | None, folder: Path) -> dict:
    """Run one task in a process with the setting. Raises UgicmError with what the process said if it fails."""
    name = hashlib.blake2b(setting.name.encode(), digest_size=6).hexdigest()
    (folder / name).mkdir(parents=True, exist_ok=True)
    task = task | {
        "threads": setting.threads, "mkldnn": setting.mkldnn, "channels_last": setting.channels_last,
        "fast": setting.fast, "device": setting.device, "checkpoint": checkpoint, "folder": str(folder / name),
    }  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads), **setting.environment}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    program = "import sys; from scripts.stress.portability import work; work(sys.stdin.read())"
    process = subprocess.run(
        [setting.python, "-W", "ignore", "-c", program], input=json.dumps(task), capture_output=True, text=True,
        env=environment, check=False,
    )  # fmt: skip
    if process.returncode:
        said = process.stderr.strip()[-800:] or f"exit status {process.returncode}"
        raise UgicmError(f"{setting.name}: {said}")
    return json.loads(process.stdout.splitlines()[-1])


def work(text: str) -> None:
    """In the process of one setting: do the task given as json, print the outcome as json."""
    import torch

    from ugicm.codec import load

    task = json.loads(text)
    torch.set_num_threads(task["threads"])
    torch.backends.mkldnn.enabled = task["mkldnn"]
    codec = load(task["checkpoint"], task["device"], fast=task["fast"])
    if not task["channels_last"]:
        codec.model.to(memory_format=torch.contiguous_format)
    watch = _Watch(codec.model.parser)
    if task["mode"] == "write":
        outcome = {"streams": _write(codec, task)}
    else:
        outcome = {"symbols": {name: _read(codec, Path(name)) for name in task["streams"]}}
    outcome |= {"closest": watch.closest, "settled": watch.settled, "torch": torch.__version__}
    print(json.dumps(outcome))


def _write(codec, task: dict) -> dict[str, str]:
    """Path of every stream -> digest of the latent it must give."""
    streams = {}
    for i, image in enumerate(task["images"]):
        for quality in task["qualities"] if codec.has_quality else [0.5]:
            path = Path(task["folder"]) / f"{i}-{quality}.ugic"
            atomic.write(path, codec.compress(image, quality))
            streams[str(path)] = _read(codec, path)
    return streams


def _read(codec, path: Path) -> str:
    """Digest of a stream's latent: of its very bits where parsing is exact, else of its symbols alone."""
    from ugicm import bitstream
    from ugicm.errors import StreamError

    parsed = bitstream.parse(path.read_bytes())
    try:
        y_hat = codec.parse(parsed)
    except StreamError as error:
        return f"StreamError: {error}"
    if codec.config.parsing != "fixed":
        return f"symbols {parsed.digests}"
    return hashlib.blake2b(y_hat.double().cpu().numpy().tobytes(), digest_size=16).hexdigest()


class _Watch:
    """Sees every choice of a table row: how close it was, and how often the guard list changed it."""

    def __init__(self, parser):
        from ugicm.entropy import rans

        self.closest, self.settled = float("inf"), 0
        gaussian = parser.gaussian
        choose, settle = gaussian.build_indexes, rans.RansDecoderCoder._settle

        def watched(scales):
            indexes, bounds = choose(scales), gaussian.bounds().to(scales)
            for bound in (bounds[(indexes - 1).clamp(min=0)], bounds[indexes.clamp(max=len(bounds) - 1)]):
                distance = ((scales - bound) / bound).abs()
                self.closest = min(self.closest, distance[distance > 0].min().item())
            return indexes

        def counted(coder, rows, neighbors):
            before = rows.copy()
            settle(coder, rows, neighbors)
            self.settled += int((rows != before).sum())

        gaussian.build_indexes = watched
        rans.RansDecoderCoder._settle = counted
