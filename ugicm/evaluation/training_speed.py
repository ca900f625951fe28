"""How fast training steps are under variants of a configuration, by running the loop itself and reading its records."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ugicm.config import load_config
from ugicm.evaluation.memory import in_fresh_process

# What each variant sets over the configuration as it is given.
VARIANTS: dict[str, list[str]] = {
    "as configured": [],
    "fp32": ["precision.autocast=none", "precision.bf16_parser=false"],
    "bf16": ["precision.autocast=bf16"],
    "bf16, parser too": ["precision.autocast=bf16", "precision.bf16_parser=true"],
    "channels_last off": ["precision.channels_last=false"],
    "compile": ["precision.compile=true"],
}
PHASES = ("data", "forward", "backward", "optimiser", "other")


def time_variant(
    config: str, overrides: Sequence[str], variant: str, steps: int, repeats: int, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
    """Train ``steps`` steps to warm up and ``repeats`` times as many to measure, in a process and a folder of its own.

    Returns samples a second and each phase's share of the time (medians over the measured stretches), and seconds a
    step. Raises what training raises: ConfigError, CheckpointError, UgicmError.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *overrides, *VARIANTS[variant], f"run.dir={folder}/run", f"run.device={device}", f"run.threads={threads}",
            f"run.log_every={steps}", f"run.save_every={steps * (repeats + 1)}", "run.max_minutes=null",
            f"optim.steps={steps * (repeats + 1)}", "optim.warmup=0", "validation.every=0",
        ]  # fmt: skip
        batch = load_config(config, settings).data.batch
        in_fresh_process(_train, config, settings)  # threads and compiled code of one variant must not serve the next
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (start,) = (event for event in events if event["event"] == "start")
    return {"variant": variant, "device": start["device"], "threads": start["threads"], **summarise(events, batch)}


def _train(config: str, settings: list[str]) -> None:
    from ugicm.training.loop import train

    train(load_config(config, settings))


def summarise(events: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Speed from a run's records; the first stretch of training counts as warm-up."""
    stretches = [event for event in events if event["event"] == "train"][1:]
    pace = statistics.median(event["samples_per_s"] for event in stretches)
    shares = {phase: statistics.median(event.get(f"time/{phase}", 0.0) for event in stretches) for phase in PHASES}
    return {
        "samples_per_s": round(pace, 3),
        "seconds_per_step": round(batch / pace, 4),
        "slowest_samples_per_s": round(min(event["samples_per_s"] for event in stretches), 3),
        "shares": {phase: round(share, 3) for phase, share in shares.items()},
    }
