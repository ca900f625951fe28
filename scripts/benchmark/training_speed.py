"""How fast training steps are under variants of a configuration, by running the loop itself and reading its records."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.memory import in_fresh_process
from ugicm.config import load_config

# What each variant sets over the configuration as it is given.
VARIANTS: dict[str, list[str]] = {
    "as configured": [],
    "fp32": ["precision.autocast=none", "precision.bf16_parser=false"],
    "bf16": ["precision.autocast=bf16"],
    "bf16, parser too": ["precision.autocast=bf16", "precision.bf16_parser=true"],
    "channels_last off": ["precision.channels_last=false"],
    "compile": ["precision.compile=true"],
}
PHASES = ("data", "forward", "backward", "optimizer", "other")


Case = tuple[str, str, int]  # variant, device, threads (0: PyTorch's own choice)


def distinct(config: str, overrides: Sequence[str], variants: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The variants that differ from those before them, and which of these the others are the same as.

    Raises ConfigError.
    """
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for variant in variants:
        said = str(load_config(config, [*overrides, *VARIANTS[variant]]).precision)
        first.setdefault(said, variant)
        if first[said] != variant:
            same[variant] = first[said]
    return list(first.values()), same


def time_in_turns(
    config: str, overrides: Sequence[str], cases: Sequence[Case], steps: int, repeats: int,
    say: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Speed of training for each case, which take turns ``repeats`` times, so that other load meets all of them.

    ``say`` takes a line for each turn. Raises what training raises: ConfigError, CheckpointError, UgicmError.
    """
    batch = load_config(config, overrides).data.batch
    turns: list[list[tuple[dict, dict]]] = [[] for _ in cases]
    for turn in range(repeats):
        for case, measured in zip(cases, turns, strict=True):
            say(f"{case[0]}, {case[1]}, turn {turn + 1} of {repeats} ...")
            measured.append(_measured(config, [*overrides, *VARIANTS[case[0]]], *case[1:], steps))
    return [
        {"variant": case[0], "device": measured[0][0]["device"], "threads": measured[0][0]["threads"],
         **summarize([stretch for _, stretch in measured], batch)}
        for case, measured in zip(cases, turns, strict=True)
    ]  # fmt: skip


def _measured(config: str, overrides: Sequence[str], device: str, threads: int, steps: int) -> tuple[dict, dict]:
    """Train ``steps`` steps to warm up and as many to measure, in a process and a folder of its own. Returns the run's
    records of its start and of the measured stretch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *overrides, f"run.dir={folder}/run", f"run.device={device}", f"run.threads={threads}",
            f"run.log_every={steps}", f"run.save_every={2 * steps}", "run.max_minutes=null",
            f"optim.steps={2 * steps}", "optim.warmup=0", "validation.every=0",
        ]  # fmt: skip
        in_fresh_process(_train, config, settings)  # threads and compiled code of one variant must not serve the next
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (start,) = (event for event in events if event["event"] == "start")
    _, stretch = (event for event in events if event["event"] == "train")
    return start, stretch


def _train(config: str, settings: list[str]) -> None:
    from ugicm.training.loop import train

    train(load_config(config, settings))


def summarize(stretches: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Speed from a run's records of measured stretches: medians of samples a second, seconds a step and each phase's
    share of the time; and the slowest and the fastest stretch."""
    paces = [stretch["samples_per_s"] for stretch in stretches]
    pace = statistics.median(paces)
    shares = {phase: statistics.median(s.get(f"time/{phase}", 0.0) for s in stretches) for phase in PHASES}
    return {
        "samples_per_s": round(pace, 3),
        "seconds_per_step": round(batch / pace, 4),
        "slowest_samples_per_s": round(min(paces), 3),
        "fastest_samples_per_s": round(max(paces), 3),
        "shares": {phase: round(share, 3) for phase, share in shares.items()},
    }
