"""Which version of the code runs, for the record of what it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def revision() -> str | None:
    """The git revision of the checkout this package runs from, "-dirty" with changes but to documents, which results
    are among; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!*.md")
        return git("describe", "--always", "--abbrev=12", "--exclude=*") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
