"""Which version of the code runs, for the record of what it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def revision() -> str | None:
    """The git revision of the checkout this package runs from, "-dirty" with changes; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
