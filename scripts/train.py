#!/usr/bin/env python3
"""Train a codec.

    python scripts/train.py -c configs/smoke.yaml
    python scripts/train.py -c configs/smoke.yaml --set run.dir=/tmp/run optim.lr=1e-4
    python scripts/train.py -c configs/smoke.yaml --resume
    torchrun --nproc_per_node=4 scripts/train.py -c configs/paper/mlicpp_stage1_rate2.yaml

Exit status: 0 trained or stopped cleanly with a checkpoint, 1 failed while training, 2 unusable input.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ugicm.config import load_config  # noqa: E402
from ugicm.errors import CheckpointError, ConfigError, PictureError, UgicmError  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-c", "--config", required=True, help="yaml file, see configs/")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in run.dir exactly where it stopped"
    )
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        from ugicm.training.loop import train

        train(config, arguments.resume, shlex.join(sys.argv))
    except (ConfigError, CheckpointError, PictureError) as error:
        if os.environ.get("RANK", "0") == "0":  # all processes say the same
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"train.py: training needs {error.name}: pip install 'ugicm[train]'", file=sys.stderr)
        return 2
    except (UgicmError, OSError) as error:  # a loss that is not finite, no memory, a full disk
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
