"""Evaluate a codec on a data set.

    python tests/test.py [-exp NAME] [--gpu_id N] [-c CKPT] [-d DATASET] [--quality Q ...]

Works from any folder, and where the package is not installed: this checkout's is used.
"""

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore", FutureWarning)  # of libraries, as they are imported

from ugicm.evaluation.codec import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(ROOT / "experiments"))
