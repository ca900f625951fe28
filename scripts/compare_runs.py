#!/usr/bin/env python3
"""Compare training runs by their last validation, from the metrics.jsonl of each.

    python scripts/compare_runs.py experiments/adamw experiments/soap -o docs/results/recipe/optimizer.json

The rate of a run relative to the first one is the mean over the operating points of (L - L_first) / bpp_first, where L
is the loss bpp + lambda * distortion: to first order, the difference in rate at equal distortion. Runs must have been
validated at the same points with the same lambdas.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ugicm.arguments import ArgumentParser, run_command
from ugicm.atomic import write
from ugicm.errors import UgicmError


def read_run(folder: Path) -> dict[str, Any]:
    """Return the settings and validations of the run in ``folder``. Raises UgicmError if it has no validation."""
    import yaml

    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [event for event in events if event["event"] == "validation"]
    if not validations:
        raise UgicmError(f"{folder}: no validation in metrics.jsonl; train with validation.every above 0")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return {"name": folder.name, "optim": config["optim"], "data": config["data"], "validations": validations}


def losses(validation: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return (loss, bpp) of every operating point of a validation."""
    points = sorted({match[0] for key in validation if (match := re.match(r"q[^/]+/b[^/]+", key))})
    return {point: (validation[f"{point}/loss"], validation[f"{point}/bpp"]) for point in points}


def relative_rate(run: dict[str, Any], first: dict[str, Any]) -> float:
    """Return the rate of the last validation of ``run`` relative to that of ``first``, in percent."""
    own, reference = losses(run["validations"][-1]), losses(first["validations"][-1])
    if own.keys() != reference.keys():
        raise UgicmError(f"{run['name']} and {first['name']} were validated at different points")
    return 100 * sum((own[p][0] - loss) / bpp for p, (loss, bpp) in reference.items()) / len(reference)


def summary(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    last = run["validations"][-1]
    return {
        "run": run["name"],
        "steps": last["step"],
        "samples": last["step"] * run["data"]["batch"],
        "minutes": round(last["minutes"], 1),
        **{key: round(last[key], 4) for key in ("loss", "bpp", "psnr")},
        "relative rate": round(relative_rate(run, first), 2),
        "optim": run["optim"],
        "curve": [[v["step"], round(v["loss"], 4)] for v in run["validations"]],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("-o", "--output", type=Path, help="write the comparison as JSON")
    args = parser.parse_args(argv)
    runs = [read_run(folder) for folder in args.runs]
    rows = [summary(run, runs[0]) for run in runs]
    shown = ("run", "steps", "samples", "minutes", "loss", "bpp", "psnr", "relative rate")
    for row in ({key: key for key in shown}, *rows):
        print("  ".join(f"{row[key]!s:>14}" for key in shown))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write(args.output, (json.dumps({"runs": rows}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
