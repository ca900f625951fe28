"""Preferences as users give them: names, numbers and maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ugicm.arguments import PREFERENCES
from ugicm.images import open_rgb


def to_beta(preference: Any, size: tuple[int, int], name: str = "preference") -> Tensor:
    """Return a preference as networks take it, float32: a number [1], or a map [1, 1, H, W] of an image's ``size``.

    ``name`` is what messages call it. Raises ValueError for an unknown name, values outside of [0, 1], or a map that
    is not of ``size`` (width, height).
    """
    if isinstance(preference, str):
        if preference not in PREFERENCES:
            raise ValueError(f"preference {preference!r} not found; available: human, machine, a number in [0, 1]")
        preference = PREFERENCES[preference]
    if isinstance(preference, Image.Image):
        preference = np.asarray(open_rgb(preference).convert("L"), dtype=np.float32) / 255
    if isinstance(preference, Tensor):
        preference = preference.detach().double().cpu().numpy()
    beta = torch.from_numpy(np.array(preference, dtype=np.float64))
    if beta.dim() not in (0, 2) or beta.dim() == 2 and tuple(beta.shape) != size[::-1]:
        raise ValueError(
            f"a {name} is a number or a map of the image's size {size[0]}x{size[1]}, got shape {tuple(beta.shape)}"
        )
    if not bool(((beta >= 0) & (beta <= 1)).all()):
        raise ValueError(f"{name} must be from 0" + (" (human) to 1 (machine)" if name == "preference" else " to 1"))
    beta = beta.float()
    return beta[None] if beta.dim() == 0 else beta[None, None]
