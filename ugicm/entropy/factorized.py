"""Factorized prior of the hyper latent.

Ballé, Minnen, Singh, Hwang, Johnston, "Variational Image Compression with a Scale Hyperprior", ICLR 2018, appendix
6.1: the cumulative distribution of each channel is a small network that is monotonic by construction.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugicm.entropy.tables import TAIL_MASS, TabulatedPrior

HIDDEN_WIDTHS = (3, 3, 3, 3)
INITIAL_WIDTH = 10.0  # the prior starts with a density about this wide


class FactorizedPrior(TabulatedPrior):
    """Learned density of each of ``channels`` channels, independent of position.

    Layer k of the cumulative network is ``h = softplus(matrices[k]) x + biases[k]``, followed (except for the last
    layer) by ``h + tanh(factors[k]) tanh(h)``. A sigmoid makes the result a probability. ``quantiles`` [channels, 1, 3]
    are the lower tail, the median and the upper tail; they are fitted by :meth:`quantile_loss`. State dicts are
    interchangeable with those of CompressAI's ``EntropyBottleneck``.
    """

    def __init__(self, channels: int):
        super().__init__()
        widths = (1, *HIDDEN_WIDTHS, 1)
        layers = len(widths) - 1
        slope = INITIAL_WIDTH ** (-1 / layers)  # of each layer, so that all together divide by INITIAL_WIDTH
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for width_in, width_out in pairwise(widths):
            start = math.log(math.expm1(slope / width_out))  # softplus(start) = slope / width_out
            self.matrices.append(torch.full((channels, width_out, width_in), start))
            self.biases.append(torch.empty(channels, width_out, 1).uniform_(-0.5, 0.5))
            if len(self.matrices) < layers:
                self.factors.append(torch.zeros(channels, width_out, 1))
        quantiles = torch.tensor([-INITIAL_WIDTH, 0.0, INITIAL_WIDTH])
        self.quantiles = nn.Parameter(quantiles.repeat(channels, 1, 1))
        tail = math.log(2 / TAIL_MASS - 1)
        self.register_buffer("target", torch.tensor([-tail, 0.0, tail]))  # logits of the quantiles

    @property
    def medians(self) -> Tensor:
        """Medians, [1, channels, 1, 1], detached."""
        return self.quantiles[:, :, 1:2].detach().reshape(1, -1, 1, 1)

    def likelihood(self, z: Tensor) -> Tensor:
        """Return the probability of the unit interval around each value. [B, C, H, W] -> same, at least 1e-9."""
        by_channel = z.transpose(0, 1)
        values = by_channel.reshape(len(by_channel), 1, -1)
        lower, upper = self._logits(values - 0.5), self._logits(values + 0.5)
        probability = self.likelihood_lower_bound(torch.sigmoid(upper) - torch.sigmoid(lower))
        return probability.reshape(by_channel.shape).transpose(0, 1).contiguous()

    def quantile_loss(self) -> Tensor:
        """Return the loss that fits ``quantiles`` to the density, a scalar. The density gets no gradient."""
        return (self._logits(self.quantiles, detach=True) - self.target).abs().sum()

    def _logits(self, x: Tensor, detach: bool = False) -> Tensor:
        """Return the logits of the cumulative distribution. [C, 1, n] -> same."""
        for k, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
            factor = self.factors[k] if k < len(self.factors) else None
            if detach:
                matrix, bias, factor = (None if p is None else p.detach() for p in (matrix, bias, factor))
            x = torch.matmul(F.softplus(matrix), x) + bias
            if factor is not None:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x

    @torch.no_grad()
    def build_tables(self) -> None:
        """Build the CDF tables, in float64, so that the same parameters give the same tables on every machine.

        A row reaches from the lower to the upper quantile of its channel.
        """
        prior = copy.deepcopy(self).double()
        low, median, high = prior.quantiles[:, 0].unbind(1)
        below, above = (side.ceil().long().clamp(min=0) for side in (median - low, high - median))
        length = below + above + 1
        symbols = torch.arange(int(length.max()), device=median.device) + (median - below)[:, None]
        lower, upper = (prior._logits(symbols[:, None] + side)[:, 0] for side in (-0.5, 0.5))
        pmf = torch.sigmoid(upper) - torch.sigmoid(lower)
        escape = torch.sigmoid(lower[:, :1]) + torch.sigmoid(-upper[:, -1:])
        self.set_tables([torch.cat([p[:n], e]) for p, n, e in zip(pmf, length.tolist(), escape)], -below)
