"""Validation on fixed images at fixed qualities and preferences, with the arithmetic of real bitstreams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ugicm.checkpoints.native import blank_model, load_weights, model_state
from ugicm.config import TrainConfig
from ugicm.losses.distortion import batch_psnr
from ugicm.losses.objective import Objective
from ugicm.models.ugicm import UGICM
from ugicm.training.log import Meter

HIGHER_IS_BETTER = {"psnr"}
BATCH = 8  # images at a time


def snapshot(model: UGICM, device: torch.device) -> UGICM:
    """Return a copy of ``model`` without compilation and hooks."""
    state = model_state(model)
    fresh = blank_model(model.config, "snapshot", sum(tensor.nbytes for tensor in state.values()))
    load_weights(fresh, state, "snapshot")
    return fresh.to(device)


def points(config: TrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the qualities and preferences to validate at: the configured ones, or the only one that is trained."""
    qualities, betas = config.validation.qualities, config.validation.betas
    qualities = qualities if config.quality.fixed is None else (config.quality.fixed,)
    return qualities, betas if config.beta.fixed is None else (config.beta.fixed,)


@torch.no_grad()
def validate(
    model: UGICM, objective: Objective, images: Tensor, qualities: Sequence[float], betas: Sequence[float]
) -> list[dict[str, float]]:
    """Return mean values over the images at every quality and preference.

    Args:
        model: after :meth:`UGICM.prepare_for_coding`, so that rates are those of bitstreams.
        images: uint8 [n, 3, S, S] on the CPU.

    Returns one dictionary per point: "quality", "beta", "bpp", "psnr" (dB, 8-bit images), "loss", and every term of
    the objective with a weight at that point, averaged over the images for which it is defined.
    """
    device = next(model.g_s.parameters()).device
    objective.eval()
    meters: dict[tuple[float, float], Meter] = {}
    for x in images.split(BATCH):
        x = x.to(device).float() / 255
        for q in qualities:
            quality, out = torch.full((len(x),), q), None
            for b in betas:
                beta = torch.full((len(x),), b)
                if out is None:  # latents do not depend on the preference
                    out = model(x, beta.to(device), quality.to(device))
                else:
                    out["x_hat"] = model.synthesize(out["y_hat"], beta.to(device), quality.to(device))
                losses = objective(out, x, {"beta": beta, "quality": quality, "place": torch.full((len(x), 2), 0.5)})
                meter = meters.setdefault((q, b), Meter())
                for name, total in losses.sums.items():
                    if "/" not in name:  # not of groups
                        meter.add(name, total, losses.counts[name])
                meter.add("loss", losses.total, len(x))
                meter.add("psnr", batch_psnr(out["x_hat"], x).sum(), len(x))
    objective.train()
    return [{"quality": q, "beta": b, **meter.means()} for (q, b), meter in meters.items()]


def averages(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the points that have it."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("quality", "beta"))
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(v) / len(v) for name, v in values.items()}


@torch.no_grad()
def strip(model: UGICM, images: Tensor, quality: float) -> Tensor:
    """Return a grid [3, n * S, 4 * S] in [0, 1] of the images and their reconstructions at preference 0, 0.5 and 1."""
    device = next(model.g_s.parameters()).device
    x = images.to(device).float() / 255
    n = len(x)
    on_device = torch.full((n,), quality, device=device)
    out = model(x, torch.zeros(n, device=device), on_device)
    columns = [x, out["x_hat"]]
    columns += [model.synthesize(out["y_hat"], torch.full((n,), b, device=device), on_device) for b in (0.5, 1.0)]
    rows = torch.cat([c.float().clamp(0, 1).cpu() for c in columns], dim=3)
    return torch.cat(list(rows), dim=1)
