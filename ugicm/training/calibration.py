"""CDF calibration: symbol counts of a trained model, from which its CDF tables are corrected.

Calibrated tables shorten bitstreams by the mismatch of the Gaussian. The network does not change.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from tqdm import tqdm

from ugicm.entropy.checkerboard import Part, pack
from ugicm.models.ugicm import UGICM

QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


class SymbolCounter:
    """A coder (:class:`ugicm.entropy.model.Coder`) that counts symbols.

    ``counts`` [rows, longest row - 1] has the layout of the CDF tables, with escapes last in each row.
    """

    def __init__(self, entropy_model: torch.nn.Module):
        self.gaussian = entropy_model.gaussian
        self.round_hyper = entropy_model.round_hyper
        rows, longest = self.gaussian.quantized_cdf.shape
        self.counts = torch.zeros(rows, longest - 1, dtype=torch.float64)

    def code_hyper(self, z: Tensor) -> Tensor:
        return self.round_hyper(z)

    def code(self, scale: Tensor, mean: Tensor, part: Part, y: Tensor) -> Tensor:
        residual = torch.round(pack(y, part) - mean)
        row = self.gaussian.build_indexes(scale)
        residual = residual.masked_fill(self.gaussian.certain(row), 0)
        escape = self.gaussian.cdf_length[row] - 2
        column = residual.long() - self.gaussian.offset[row]
        column = torch.where((column < 0) | (column >= escape), escape, column)
        index = (row * self.counts.shape[1] + column).flatten()
        self.counts.view(-1).index_add_(0, index, torch.ones(len(index), dtype=torch.float64))
        return mean + residual


@torch.inference_mode()
def count_symbols(model: UGICM, images: Tensor, batch: int = 8) -> Tensor:
    """Return the symbol counts of images over all positions and QUALITIES; see :class:`SymbolCounter`.

    Args:
        model: a model with CDF tables; it is not modified.
        images: uint8 [n, 3, H, W], H and W multiples of 64.
        batch: images at a time.
    """
    model = copy.deepcopy(model).prepare_for_coding()
    counter = SymbolCounter(model.entropy_model)
    for part in tqdm(images.split(batch), "counting symbols", unit="batch", disable=None):
        x = part.float() / 255
        for quality in QUALITIES if model.has_quality else (0.5,):
            y = model.analyze(x, torch.full((len(x),), quality))
            model.entropy_model(counter, model.h_a(y), y)
    return counter.counts
