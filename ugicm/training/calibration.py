"""CDF calibration: symbol counts of a trained model, from which its CDF tables are corrected.

Calibrated tables shorten bitstreams by the mismatch of the Gaussian. The network does not change.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from tqdm import tqdm

from ugicm.entropy.coders import Encoder
from ugicm.models.ugicm import UGICM

QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.inference_mode()
def count_symbols(model: UGICM, images: Tensor, batch: int = 8) -> Tensor:
    """Return how often each symbol of each table row of y occurs in images, over all positions and QUALITIES.

    Args:
        model: a model with CDF tables; it is not modified.
        images: uint8 [n, 3, H, W], H and W multiples of 64.
        batch: images at a time.

    Returns:
        float64 [rows, longest row - 1], in the layout of the CDF tables, with escapes last in each row.
    """
    model = copy.deepcopy(model).prepare_for_coding()
    gaussian = model.entropy_model.gaussian
    rows, longest = gaussian.quantized_cdf.shape
    counts = torch.zeros(rows * (longest - 1), dtype=torch.float64)
    for part in tqdm(images.split(batch), "counting symbols", unit="batch", disable=None):
        x = part.float() / 255
        for quality in QUALITIES if model.has_quality else (0.5,):
            y = model.analyze(x, torch.full((len(x),), quality))
            coder = Encoder(model.entropy_model, len(y))
            model.entropy_model(coder, model.hyper_analyze(y), y)
            for one in coder.passes[1:]:  # after z
                row = one.rows.long()
                escape = gaussian.cdf_length[row] - 2
                column = one.symbols.long() - gaussian.offset[row]
                column = torch.where((column < 0) | (column >= escape), escape, column)
                counts += torch.bincount((row * (longest - 1) + column).flatten(), minlength=len(counts))
    return counts.view(rows, longest - 1)
