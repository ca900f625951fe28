"""Memory for intermediate results, kept from call to call: fresh pages would cost more than the arithmetic."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self):
        self.kept: dict[object, Tensor] = {}


_buffers = _Buffers()


def take(name: object, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialized memory of this thread on the CPU, valid until the same name and type are taken again."""
    size = math.prod(shape)
    buffer = _buffers.kept.get((name, dtype))
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # usable inside and outside of inference mode
            buffer = _buffers.kept[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return buffer[:size].view(shape)
