#!/usr/bin/env python3
"""Add detail channels to the latent of a trained compact model, for high rates. The result needs further training.

The channels are coefficients of 16x16 blocks, added to the image through a second linear transform. They are
initialized by reduced-rank regression of the trained model's error on the image (Izenman, "Reduced-rank regression for
the multivariate linear model", Journal of Multivariate Analysis 5, 1975).

    python scripts/widen_checkpoint.py runs/a/model.safetensors experiments/wider.safetensors -d photos/ --width 64
    python scripts/train.py -c configs/compact_4_detail.yaml

Exit status: 0 written, 1 the output cannot be written, 2 invalid input or the output exists.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ugicm.arguments import ArgumentParser, run_command
from ugicm.checkpoints.native import check_output, load_model, read_metadata, save_model
from ugicm.config import CompactConfig
from ugicm.data.images import center_crops, find_images
from ugicm.errors import ConfigError
from ugicm.losses.rate import log_linear
from ugicm.models.ugicm import UGICM
from ugicm.tiling import Y_STRIDE


def optimal_step(lambda_: Tensor) -> Tensor:
    """Return the quantization step, in 8-bit levels, that minimizes bpp + lambda * 255² * MSE.

    For orthonormal coefficients at high resolution the distortion is step² / 12 and the rate falls by log2(step) per
    coefficient, three per pixel: step² = 6 * 3 / (ln 2 * lambda).
    """
    return torch.sqrt(18 / (math.log(2) * lambda_))


@torch.no_grad()
def residual_blocks(model: UGICM, x: Tensor, quality: float) -> tuple[Tensor, Tensor]:
    """Return 16x16 blocks of images x [B, 3, H, W] and of the model's error, [n, 768] each, in 8-bit levels."""
    q = torch.full((len(x),), quality)
    y = model.analyze(x, q)
    x_hat = model.synthesize(torch.round(y), torch.zeros(len(x)), q)
    return tuple(255 * F.pixel_unshuffle(v, Y_STRIDE).permute(0, 2, 3, 1).flatten(0, 2) for v in (x - 0.5, x - x_hat))


def reduced_rank(blocks: Tensor, errors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best linear prediction of ``errors`` from ``blocks``, [n, D] each, of the given rank.

    It is the product of synthesis [D, rank], with orthonormal columns, and analysis [rank, D], returned in the order
    (analysis, synthesis).
    """
    blocks, errors = blocks.double(), errors.double()
    gram = blocks.T @ blocks
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    full = torch.linalg.solve(gram + ridge, blocks.T @ errors)
    _, vectors = torch.linalg.eigh(full.T @ gram @ full)
    synthesis = vectors.flip(1)[:, :rank]
    return (full @ synthesis).T.float(), synthesis.float()


def widen(model: UGICM, width: int, crops: Tensor, lambdas: tuple[float, ...], quality: float = 1.0) -> UGICM:
    """Return a model with ``width`` additional latent channels, in a slice of their own.

    Args:
        crops: images uint8 [n, 3, H, W] to fit the channels on.
        lambdas: those of the objective, at evenly spaced qualities.
        quality: quality at which the model's error is computed.

    Raises ConfigError if the model is not a compact multi-rate model without detail channels, or for invalid widths or
    lambdas.
    """
    old, block_size = model.config, 3 * Y_STRIDE**2
    if not 1 <= width <= block_size:
        raise ConfigError(f"width must be from 1 to {block_size}, the values of a block, got {width}")
    if not all(0 < value < math.inf for value in lambdas):
        raise ConfigError(f"lambdas must be positive numbers, got {list(lambdas)}")
    if old.backbone != "compact" or old.detail_width or not old.quality_points:
        raise ConfigError("detail channels can only be added to a compact multi-rate model that has none")
    config = dataclasses.replace(old, M=old.M + width, slice_widths=(*old.slice_widths, width), detail_width=width)
    pairs = [residual_blocks(model, batch.float() / 255, quality) for batch in crops.split(16)]
    blocks, errors = (torch.cat(parts) for parts in zip(*pairs))
    return _assemble(model, config, *reduced_rank(blocks, errors, width), lambdas)


@torch.no_grad()
def _assemble(model: UGICM, config: CompactConfig, analysis: Tensor, synthesis: Tensor, lambdas: tuple) -> UGICM:
    """Return a model of ``config`` with the weights of ``model`` and the detail transforms."""
    wider = UGICM(config)
    target = wider.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in target or target[name].numel() == 0:
            continue  # tables are rebuilt
        if target[name].shape == tensor.shape:
            target[name].copy_(tensor)
        else:  # first layer of the synthesis, and gains: new channels are last
            target[name].zero_()
            target[name][tuple(slice(n) for n in tensor.shape)] = tensor
    # In units of the middle step, so that weights and gains have a scale that suits a common learning rate.
    unit = optimal_step(log_linear(lambdas, torch.tensor([0.5])))
    wider.g_a.detail.weight.copy_(255 / unit * analysis[:, :, None, None])
    wider.g_s.detail.weight.copy_(unit / 255 * synthesis[:, :, None, None])
    steps = optimal_step(log_linear(lambdas, torch.linspace(0, 1, config.quality_points)))
    wider.gain.log_gain[:, -config.detail_width :] = (unit / steps).log()[:, None]
    return wider


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="a compact multi-rate model, .safetensors")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors", help="file to write")
    parser.add_argument("-d", "--data", type=Path, nargs="+", required=True, help="images to fit the channels on")
    parser.add_argument("--width", type=int, default=64, help="channels to add (default: %(default)s)")
    parser.add_argument(
        "--lambdas", type=float, nargs="+", default=[0.0005, 0.0063, 0.08],
        help="lambdas of the objective, for the initial quantization steps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    check_output(arguments.target, arguments.overwrite)
    model = load_model(arguments.source)
    files = [file for folder in arguments.data for file in find_images(folder)]
    crops = center_crops(files, 320)  # downscaling removes compression artifacts
    small = [F.interpolate(c.float(), size=192, mode="bicubic", antialias=True) for c in crops.split(32)]
    wider = widen(model, arguments.width, torch.cat(small).clamp(0, 255), tuple(arguments.lambdas))
    about = {**read_metadata(arguments.source), "widened": f"{arguments.width} detail channels"}
    save_model(arguments.target, wider, {k: v for k, v in about.items() if k not in ("fingerprint", "calibrated")})
    parameters = sum(p.numel() for p in wider.parameters()) / 1e6
    print(f"{arguments.target}: M={wider.config.M}, {parameters:.2f} M parameters")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
