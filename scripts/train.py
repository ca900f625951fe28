#!/usr/bin/env python3
"""Train a codec.

    python scripts/train.py -c configs/smoke.yaml
    python scripts/train.py -c configs/smoke.yaml --set run.dir=/tmp/run optim.lr=1e-4
    python scripts/train.py -c configs/smoke.yaml --resume
    torchrun --nproc_per_node=4 scripts/train.py -c configs/paper/mlicpp_stage1_rate2.yaml

Exit status: 0 trained or stopped cleanly with a checkpoint, 1 failed while training, 2 unusable input.
"""

from __future__ import annotations

import shlex
import sys

from ugicm.arguments import Parser, guarded
from ugicm.config import load_config


def main() -> int:
    """Returns the exit status."""
    return guarded(_train)


def _train() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--config", required=True, help="yaml file, see configs/")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    parser.add_argument("--resume", action="store_true", help="continue the run in run.dir exactly where it stopped")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    from ugicm.training.loop import train

    train(config, arguments.resume, shlex.join(sys.argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
