#!/usr/bin/env python3
"""Train a codec from a YAML configuration.

    python scripts/train.py -c configs/smoke.yaml
    python scripts/train.py -c configs/smoke.yaml --set run.dir=/tmp/run optim.lr=1e-4
    python scripts/train.py --resume experiments/smoke          # continue a run, with the settings it was started with
    torchrun --nproc_per_node=4 scripts/train.py -c configs/paper/mlicpp_stage1_rate2.yaml

Each configuration says at its top which data it needs, by default in the folder data/ of the repository. For other
data override data.train with a list of folders, or of folders with COCO annotations of instances:
    --set 'data.train=[FOLDER, FOLDER]'
    --set 'data.train=[{path: FOLDER, instances: FILE.json}]'

Exit status: 0 trained, or stopped with a checkpoint; 1 failed during training; 2 invalid input.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ugicm.arguments import ArgumentParser, run_command
from ugicm.config import load_config

CONFIG_FILE = "config.yaml"  # in the folder of a run


def main() -> int:
    """Run the command and return its exit status."""
    return run_command(_train)


def _train() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", help="YAML file, see configs/")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="continue the run in the folder RUN from "
                        "its checkpoint, with its configuration; without RUN, the run in run.dir of -c, with equal "
                        "settings")  # fmt: skip
    arguments = parser.parse_args()
    run = arguments.resume
    if bool(arguments.config) == bool(run):
        parser.error("give a configuration with -c, or the folder of a run with --resume RUN")
    if run:
        arguments.config = Path(run, CONFIG_FILE)
        arguments.set.insert(0, f"run.dir={Path(run).absolute()}")
    config = load_config(arguments.config, arguments.set)
    from ugicm.training.loop import train

    train(config, run is not None, shlex.join(sys.argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
