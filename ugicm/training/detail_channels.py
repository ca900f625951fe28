"""Give a trained compact model more latent channels, for detail at high rates.

The added channels are linear: coefficients of blocks of 16x16 pixels, added to the image through a second linear
transform. They start from what the trained model leaves over: of all linear predictions of its error from the
image with a given number of coefficients, the one that explains most (reduced-rank regression: Izenman, "Reduced-
rank regression for the multivariate linear model", J. Multivariate Analysis 5, 1975). Training goes on from there.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ugicm.config import ModelConfig
from ugicm.errors import ConfigError
from ugicm.losses.rate import log_linear
from ugicm.models.ugicm import UGICM
from ugicm.tiling import Y_STRIDE


def optimal_step(lambda_: Tensor) -> Tensor:
    """Quantization step of an orthonormal coefficient, in 8-bit levels, at which bpp + lambda * 255² * MSE is least.

    High-resolution theory: with a distortion of step² / 12 a coefficient and a rate that falls by log2(step), per
    pixel and per color of three: step² = 6 * 3 / (ln 2 * lambda).
    """
    return torch.sqrt(18 / (math.log(2) * lambda_))


@torch.no_grad()
def leftover(model: UGICM, x: Tensor, quality: float) -> tuple[Tensor, Tensor]:
    """Blocks of the images x [B, 3, H, W] and of the model's error on them, [n, 768] each, in 8-bit levels."""
    q = torch.full((len(x),), quality)
    y = model.analyze(x, q)
    x_hat = model.synthesize(torch.round(y), torch.zeros(len(x)), q)
    return tuple(255 * F.pixel_unshuffle(v, Y_STRIDE).permute(0, 2, 3, 1).flatten(0, 2) for v in (x - 0.5, x - x_hat))


def reduced_rank(blocks: Tensor, errors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best linear prediction of ``errors`` from ``blocks``, [n, D] each, with ``rank`` coefficients.

    Returns (analysis [rank, D], synthesis [D, rank]); the columns of the synthesis are orthonormal.
    """
    blocks, errors = blocks.double(), errors.double()
    gram = blocks.T @ blocks
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    full = torch.linalg.solve(gram + ridge, blocks.T @ errors)
    _, vectors = torch.linalg.eigh(full.T @ gram @ full)
    synthesis = vectors.flip(1)[:, :rank]
    return (full @ synthesis).T.float(), synthesis.float()


def widen(model: UGICM, width: int, crops: Tensor, lambdas: tuple[float, ...], quality: float = 1.0) -> UGICM:
    """A model with ``width`` more latent channels, in a slice of their own.

    ``crops``: uint8 images [n, 3, H, W] to fit on; ``lambdas``: the objective's, at evenly spaced qualities.
    Raises ConfigError where the model is not a compact one, or has such channels already, and for widths and lambdas
    that make no sense.
    """
    old, most = model.config, 3 * Y_STRIDE**2
    if not 1 <= width <= most:
        raise ConfigError(f"a width of {width}: a block has {most} values, so from 1 to {most} channels can be added")
    if not all(0 < value < math.inf for value in lambdas):
        raise ConfigError(f"lambdas must be positive numbers, got {list(lambdas)}")
    if old.backbone != "compact" or old.detail_width or not old.quality_points:
        raise ConfigError("only a compact model of many rates that has no detail channels yet can be given some")
    config = dataclasses.replace(
        old, M=old.M + width, slices=old.slices + 1, slice_widths=(*old.widths, width), detail_width=width
    )
    analysis, synthesis = reduced_rank(*(torch.cat(v) for v in zip(*(
        leftover(model, batch.float() / 255, quality) for batch in crops.split(16)
    ))), rank=width)  # fmt: skip
    return _assemble(model, config, analysis, synthesis, lambdas)


@torch.no_grad()
def _assemble(model: UGICM, config: ModelConfig, analysis: Tensor, synthesis: Tensor, lambdas: tuple) -> UGICM:
    wider = UGICM(config)
    own = wider.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in own or own[name].numel() == 0:
            continue  # tables are built anew
        if own[name].shape == tensor.shape:
            own[name].copy_(tensor)
        else:  # the synthesis' first layer and the gains: the new channels are last
            own[name].zero_()
            own[name][tuple(slice(n) for n in tensor.shape)] = tensor
    # In units of the middle step, so that the weights and gains are of a size that a common learning rate suits.
    unit = optimal_step(log_linear(lambdas, torch.tensor([0.5])))
    wider.g_a.detail.weight.copy_(255 / unit * analysis[:, :, None, None])
    wider.g_s.detail.weight.copy_(unit / 255 * synthesis[:, :, None, None])
    steps = optimal_step(log_linear(lambdas, torch.linspace(0, 1, config.quality_points)))
    wider.gain.log_gain[:, -config.detail_width :] = (unit / steps).log()[:, None]
    return wider
