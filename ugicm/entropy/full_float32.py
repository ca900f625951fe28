"""Float32 products in float32, whatever the process allows.

PyTorch may round the operands of float32 products to 10 bits or 7 (TF32, bfloat16): on GPUs it does so in
convolutions unless told otherwise, elsewhere where somebody asked for it. The images of networks do not suffer, but
probabilities that a stream is parsed with would differ between writer and reader. The switches belong to the process:
while any thread parses, they are off for all.
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
    if hasattr(b.cudnn, "conv"):  # since 2.9
        places = (b.cudnn.conv, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.matmul)
        return [_attribute(place, "fp32_precision", "ieee") for place in places]
    matmul = _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
    return [matmul, _attribute(b.cudnn, "allow_tf32", False)]


class _FullFloat32:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[_Switch, Any]] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._before = [(switch, switch.get()) for switch in _switches()]
                for switch, _ in self._before:
                    switch.set(switch.exact)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    for switch, value in self._before:
                        switch.set(value)


full_float32 = _FullFloat32()
