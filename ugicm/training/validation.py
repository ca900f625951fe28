"""Validation: the arithmetic of real streams on fixed images at fixed qualities and preferences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ugicm.checkpoints.native import blank_model, load_state, model_state
from ugicm.config import TrainConfig
from ugicm.losses.distortion import psnr
from ugicm.losses.objective import Objective
from ugicm.models.ugicm import UGICM

HIGHER_IS_BETTER = {"psnr"}
CHUNK = 8  # images at a time


def snapshot(model: UGICM, weights: UGICM, device: torch.device) -> UGICM:
    """A fresh, uncompiled model of the same form with the given weights."""
    state = model_state(weights)
    fresh = blank_model(model.config, "snapshot", sum(tensor.nbytes for tensor in state.values()))
    load_state(fresh, state, "snapshot")
    return fresh.to(device)


def points(config: TrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Qualities and preferences to validate at: the trained one where only one is trained."""
    qualities, betas = config.validation.qualities, config.validation.betas
    qualities = qualities if config.quality.fixed is None else (config.quality.fixed,)
    return qualities, betas if config.beta.fixed is None else (config.beta.fixed,)


@torch.no_grad()
def validate(
    model: UGICM, objective: Objective, images: Tensor, qualities: Sequence[float], betas: Sequence[float]
) -> list[dict[str, float]]:
    """Mean values over the images at every quality and preference.

    Args:
        model: after :meth:`UGICM.prepare_for_coding`, so that rates are what streams cost.
        images: uint8 [n, 3, S, S] on the CPU.

    Returns: one dict per point: "quality", "beta", "bpp", "psnr" (dB, 8-bit images), "loss" and every term of
    the objective that has a weight there (mean over the images that have it).
    """
    device = next(model.g_s.parameters()).device
    objective.eval()
    table: dict[tuple[float, float], dict[str, list[float]]] = {}
    for start in range(0, len(images), CHUNK):
        x = images[start : start + CHUNK].to(device).float() / 255
        for q in qualities:
            quality = torch.full((len(x),), q)
            on_device = quality.to(device) if model.has_quality else None
            out = None
            for b in betas:
                beta = torch.full((len(x),), b)
                if out is None:  # analysis and parsing do not depend on the preference
                    out = model(x, beta.to(device), on_device)
                else:
                    out["x_hat"] = model.synthesize(out["y_hat"], beta.to(device), on_device)
                losses = objective(out, x, {"beta": beta, "quality": quality, "place": torch.full((len(x), 2), 0.5)})
                row = table.setdefault((q, b), {})
                sums = {k: (float(v), losses.counts[k]) for k, v in losses.sums.items() if "/" not in k}
                sums["loss"] = (float(losses.total), len(x))
                sums["psnr"] = (float(psnr(out["x_hat"], x).sum()), len(x))
                for name, (total, count) in sums.items():
                    cell = row.setdefault(name, [0.0, 0])
                    cell[0] += total
                    cell[1] += count
    objective.train()
    return [
        {"quality": q, "beta": b, **{name: total / count for name, (total, count) in row.items()}}
        for (q, b), row in table.items()
    ]


def averages(rows: list[dict[str, float]]) -> dict[str, float]:
    """Each value's mean over the points that have it."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("quality", "beta"))
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(v) / len(v) for name, v in values.items()}


@torch.no_grad()
def strip(model: UGICM, images: Tensor, quality: float) -> Tensor:
    """[3, n·S, 4·S] in [0, 1]: every image, and its reconstruction at preference 0, 0.5 and 1."""
    device = next(model.g_s.parameters()).device
    x = images.to(device).float() / 255
    n = len(x)
    on_device = torch.full((n,), quality, device=device) if model.has_quality else None
    out = model(x, torch.zeros(n, device=device), on_device)
    columns = [x, out["x_hat"]]
    columns += [model.synthesize(out["y_hat"], torch.full((n,), b, device=device), on_device) for b in (0.5, 1.0)]
    rows = torch.cat([c.float().clamp(0, 1).cpu() for c in columns], dim=3)
    return torch.cat(list(rows), dim=1)
