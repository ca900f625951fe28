"""Measure the speed of training under variants of a configuration, from the records of the training loop itself."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.processes import in_fresh_process
from ugicm.config import load_config

# Overrides of each variant.
VARIANTS: dict[str, list[str]] = {
    "as configured": [],
    "fp32": ["precision.autocast=none"],
    "bf16": ["precision.autocast=bf16"],
    "channels_last off": ["precision.channels_last=false"],
    "compile": ["precision.compile=true"],
}
PHASES = ("data", "forward", "backward", "optimizer", "other")
Case = tuple[str, str, int]  # variant, device, threads (0: PyTorch's default)


def distinct(config: str, overrides: Sequence[str], variants: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the variants with different settings, and for each of the others the variant it equals.

    Raises ConfigError.
    """
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for variant in variants:
        precision = str(load_config(config, [*overrides, *VARIANTS[variant]]).precision)
        first.setdefault(precision, variant)
        if first[precision] != variant:
            same[variant] = first[precision]
    return list(first.values()), same


def time_in_turns(
    config: str, overrides: Sequence[str], cases: Sequence[Case], steps: int, repeats: int,
    progress: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the speed of training for each case.

    Cases take turns ``repeats`` times, so that other load on the machine affects all of them. ``progress`` is called
    with a line for every turn.

    Raises:
        UgicmError: training failed.
    """
    batch = load_config(config, overrides).data.batch
    turns: list[list[tuple[dict, dict]]] = [[] for _ in cases]
    for turn in range(repeats):
        for (variant, device, threads), measured in zip(cases, turns, strict=True):
            progress(f"{variant}, {device}, turn {turn + 1} of {repeats} ...")
            measured.append(_measured(config, [*overrides, *VARIANTS[variant]], device, threads, steps))
    return [
        {"variant": case[0], "device": measured[0][0]["device"], "threads": measured[0][0]["threads"],
         **summarize([stretch for _, stretch in measured], batch)}
        for case, measured in zip(cases, turns, strict=True)
    ]  # fmt: skip


def _measured(config: str, overrides: Sequence[str], device: str, threads: int, steps: int) -> tuple[dict, dict]:
    """Train ``steps`` steps to warm up and as many to measure, in a fresh process and a temporary folder.

    Returns the run's records of its start and of the measured steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *overrides, f"run.dir={folder}/run", f"run.device={device}", f"run.threads={threads}",
            f"run.log_every={steps}", f"run.save_every={2 * steps}", "run.max_minutes=null",
            f"optim.steps={2 * steps}", "optim.warmup=0", "validation.every=0",
        ]  # fmt: skip
        in_fresh_process(_train, config, settings)  # with its own threads and compiled code
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (start,) = (event for event in events if event["event"] == "start")
    _, stretch = (event for event in events if event["event"] == "train")
    return start, stretch


def _train(config: str, settings: list[str]) -> None:
    from ugicm.training.loop import train

    train(load_config(config, settings))


def summarize(stretches: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Return medians of samples per second, seconds per step and each phase's share of the time, and the extremes."""
    rates = [stretch["samples_per_s"] for stretch in stretches]
    rate = statistics.median(rates)
    shares = {phase: statistics.median(s.get(f"time/{phase}", 0.0) for s in stretches) for phase in PHASES}
    return {
        "samples_per_s": round(rate, 3),
        "seconds_per_step": round(batch / rate, 4),
        "slowest_samples_per_s": round(min(rates), 3),
        "fastest_samples_per_s": round(max(rates), 3),
        "shares": {phase: round(share, 3) for phase, share in shares.items()},
    }
