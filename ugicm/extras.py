"""Packages that only some commands need. The extras of the project (``train``, ``eval`` ...) install them.

Importing this module is quick: only the standard library is needed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ugicm.errors import MissingPackageError


def require_packages(extra: str, needed_by: str, *packages: str) -> None:
    """Check that packages are installed, without importing them.

    Call it where work begins, or before an optional package is imported.

    Args:
        extra: extra of the project that installs the packages.
        needed_by: what needs them, for the error message.
        packages: names as they are imported.

    Raises MissingPackageError naming the first package that is not installed, and the extra.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingPackageError(f"{needed_by} needs {package}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of the project, in a clone from its folder."""
    clone = Path(__file__).resolve().parents[1]
    target = f'-e "{clone}[{extra}]"' if (clone / "pyproject.toml").is_file() else f'"ugicm[{extra}]"'
    return f"pip install {target}" + (" (Python 3.11 or 3.12)" if extra == "compressai" else "")
