"""The reference network's weights without a weight file. Those of the small form are made from ``tests/golden/parity``,
those of the full form from ``../shared/parity``; tests that need the latter skip where it is absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

PARITY = Path(__file__).resolve().parent / "golden" / "parity"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "parity"
requires_full_reference = pytest.mark.skipif(
    not (SHARED / "state_dict_full.json").is_file(), reason=f"needs the names of the full form in {SHARED}"
)


def recipe():
    """Return the module that makes weights and images."""
    spec = importlib.util.spec_from_file_location("recipe", PARITY / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_state() -> dict[str, torch.Tensor]:
    """Return a complete state dict of the small form under the reference's names."""
    return recipe().reference_state_dict(PARITY / "state_dict_small.json")
