"""Float32 matrix products on the CPU, by the quicker of the two libraries that PyTorch holds.

PyTorch multiplies matrices with MKL, which knows AVX-512 on processors of its own maker only. oneDNN, which PyTorch
convolves with, knows it on all: on AMD's Zen 5 its products are nearly twice as fast, elsewhere about as fast.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MUCH_QUICKER = 0.75  # of MKL's time, or less: one processor then always decides alike, and gets the same last digits


def by_onednn(x: Tensor) -> bool:
    """Whether products with ``x`` should go to :func:`onednn_linear`: not where gradients are wanted."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled() and _onednn_is_quicker()


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.linear``: x [n, C], weight [O, C], bias [O] -> [n, O]. Not differentiable."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def onednn_is_there() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _onednn_is_quicker() -> bool:
    """Measured once, in a few milliseconds."""
    if not onednn_is_there():
        return False
    with torch.inference_mode(), torch.device("cpu"):
        x, weight = torch.ones(384, 192), torch.ones(192, 192)
        ours, theirs = _seconds(onednn_linear, x, weight.T), _seconds(F.linear, x, weight.T)
    return ours < MUCH_QUICKER * theirs


def _seconds(work: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    """The quickest of several calls."""
    taken = []
    for _ in range(12):
        start = time.perf_counter()
        work(x, weight)
        taken.append(time.perf_counter() - start)
    return min(taken)
