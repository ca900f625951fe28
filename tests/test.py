"""Evaluate a codec on a dataset.

    python tests/test.py [-exp NAME] [--gpu_id N] [-c CKPT] [-d DATASET] [--quality Q ...]

Results go into ``experiments/`` of the repository, whatever the current folder is.
"""

import sys
from pathlib import Path

from ugicm.evaluation.rate_distortion import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1] / "experiments"))
