"""How often every symbol occurs, to calibrate a finished model's tables: without any change to the network, streams
become shorter by what the Gaussian misjudges."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from tqdm import tqdm

from ugicm.entropy.checkerboard import Part, pack
from ugicm.models.ugicm import UGICM

QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


class SymbolCounter:
    """A coder (:class:`ugicm.entropy.model.Coder`) that only counts.

    ``counts`` [rows, longest row - 1] is laid out as the rows of the CDF tables, escapes last.
    """

    def __init__(self, parser: torch.nn.Module):
        self.gaussian = parser.gaussian
        self.round_hyper = parser.round_hyper
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
        place = (row * self.counts.shape[1] + column).flatten()
        self.counts.view(-1).index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        return mean + residual


@torch.inference_mode()
def count_symbols(model: UGICM, images: Tensor, batch: int = 8) -> Tensor:
    """Counts of the symbols of images, over their positions and over all rates; see :class:`SymbolCounter`.

    ``model`` has its CDF tables and is not changed. ``images``: uint8 [n, 3, H, W], H and W multiples of 64.
    """
    model = copy.deepcopy(model).prepare_for_coding()
    counter = SymbolCounter(model.parser)
    for some in tqdm(images.split(batch), "counting symbols", unit="batch", disable=None):
        x = some.float() / 255
        for quality in QUALITIES if model.has_quality else (None,):
            y = model.analyze(x, None if quality is None else torch.full((len(x),), quality))
            model.parser(counter, model.h_a(y), y)
    return counter.counts
