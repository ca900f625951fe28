#!/usr/bin/env python
"""The report without installing the package: the same as ``ugicm report``; see --help."""

import sys

from ugicm.report.command import main

if __name__ == "__main__":
    sys.exit(main())
