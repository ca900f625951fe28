#!/usr/bin/env python
"""The report without installing the package: the same as ``ugicm report``; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ugicm.evaluation.report import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
