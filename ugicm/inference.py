"""How PyTorch runs under a codec: default types, gradients, precision, threads and forked processes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

AT_A_TIME = 4  # images of a batch in progress

if hasattr(os, "register_at_fork"):  # OpenMP in the child would wait for the threads of the parent
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class OnDevice(Protocol):
    """An object with a device."""

    device: torch.device


S = TypeVar("S", bound=OnDevice)
P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


@contextlib.contextmanager
def default_torch_settings() -> Iterator[None]:
    """Build models with PyTorch's original default device and type: the caller's would change their values."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(before)


def in_inference_mode(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method without gradients and without the caller's autocast: it would change symbols."""

    @functools.wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 if ``device`` has hardware for it, else None (float32)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    # Without instructions for it bfloat16 is slower than float32, and costs up to 0.01 dB.
    if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return torch.bfloat16
    return None


def map_in_threads(function: Callable[[Item], T], items: Sequence[Item], device: torch.device) -> list[T]:
    """Return ``function(item)`` of every item, several at a time: on the CPU at most as many as PyTorch has threads.

    Each call computes with as many threads of PyTorch as it would alone, since the last digits of convolutions depend
    on their number, and on the size of a batch: results are exactly those of one call after the other.
    """
    threads = torch.get_num_threads()
    workers = min(len(items), AT_A_TIME, threads if device.type == "cpu" else AT_A_TIME)
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return list(pool.map(function, items))
