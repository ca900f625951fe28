"""Functions in Python files of users, named ``FILE.py:function``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path


def import_function(path: str | os.PathLike, name: str) -> Callable:
    """Return a function, or another object, of a Python file.

    The code of the file is executed, and its folder is appended to ``sys.path``. Raises whatever that code raises,
    OSError if there is no such file, and AttributeError if the file does not define the name.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"ugicm_network_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    sys.path.append(str(path.resolve().parent))
    spec.loader.exec_module(module)
    return getattr(module, name)
