"""The git revision of the running code, for records."""

from __future__ import annotations

import subprocess
from pathlib import Path


def revision() -> str | None:
    """Return the git revision of the checkout that the package runs from, or None outside of a checkout.

    "-dirty" is appended if files were changed, except documents.
    """
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
