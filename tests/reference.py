"""The reference network's weights without a weight file, from ``../shared/parity``; tests that need it skip."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
requires_reference = pytest.mark.skipif(
    not (PARITY / "recipe.py").is_file(), reason=f"needs the reference outputs in {PARITY}"
)


def recipe():
    """The module that makes weights and pictures."""
    spec = importlib.util.spec_from_file_location("recipe", PARITY / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_state(size: str = "small") -> dict[str, torch.Tensor]:
    """A complete state dict under the reference's names; ``size`` is small or full."""
    torch.manual_seed(0)  # CompressAI draws the start values of the factorised prior
    return recipe().reference_state_dict(PARITY / f"state_dict_{size}.json")
