"""Full float32 precision of products, whatever the process allows.

PyTorch may round the operands of float32 products to 10 or 7 bits (TF32, bfloat16): by default in convolutions on GPUs,
elsewhere if the process allows it. Probabilities for entropy coding would then differ between encoder and decoder. The
switches are global: while any thread is inside :data:`full_float32`, reduced precision is off for all threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch


class _Switch(NamedTuple):
    get: Callable[[], Any]
    set: Callable[[Any], None]
    exact: Any


def _attribute(place: Any, name: str, exact: Any) -> _Switch:
    return _Switch(lambda: getattr(place, name), lambda value: setattr(place, name, value), exact)


def _switches() -> list[_Switch]:
    b = torch.backends
    if hasattr(b.cudnn, "conv"):  # PyTorch 2.9 or later
        places = (b.cudnn.conv, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.matmul)
        return [_attribute(place, "fp32_precision", "ieee") for place in places]
    matmul = _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
    return [matmul, _attribute(b.cudnn, "allow_tf32", False)]


class _FullFloat32:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before: list[tuple[_Switch, Any]] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._depth:
                self._before = [(switch, switch.get()) for switch in _switches()]
                for switch, _ in self._before:
                    switch.set(switch.exact)
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    for switch, value in self._before:
                        switch.set(value)


full_float32 = _FullFloat32()
