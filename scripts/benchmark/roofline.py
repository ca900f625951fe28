"""Roofline model of a network on this machine: its multiply-accumulates over a measured rate; and timers."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ugicm.models.ugicm import UGICM


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turns(
    works: Sequence[Callable[[], object]], repeats: int, device: torch.device | str = "cpu"
) -> list[list[float]]:
    """Return wall-clock seconds of every call of each of ``works``, after one warm-up call.

    Calls alternate, so that changing load on the machine affects all of them.
    """
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return seconds


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device | str = "cpu") -> float:
    """Return median wall-clock seconds of ``work``, after one warm-up call."""
    return statistics.median(seconds_in_turns([work], repeats, device)[0])


def median_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of alternating calls."""
    return round(statistics.median(a / b for a, b in zip(seconds, others, strict=True)), 3)


def count_macs(model: UGICM, side: int = 256) -> dict[str, float]:
    """Count multiply-accumulates of analysis, entropy model and synthesis, in thousands per pixel.

    Counts convolutions and linear layers for the human preference. Products inside attention are not counted.
    """
    parts = {"g_a": [model.g_a], "entropy": [model.h_a, model.entropy_model], "g_s": [model.g_s]}
    counts = dict.fromkeys(parts, 0.0)
    hooks = []

    def count(part: str, layer: nn.Module) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            counts[part] += output.numel() / channels * layer.weight.numel()

        return hook

    for part, modules in parts.items():
        for layer in (layer for module in modules for layer in module.modules()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                hooks.append(layer.register_forward_hook(count(part, layer)))
    was_training, device = model.training, next(model.parameters()).device
    with torch.enable_grad():  # layers that run by bands bypass the hooks
        quality = torch.full((1,), 0.5, device=device)
        model.eval()(torch.rand(1, 3, side, side, device=device), torch.zeros(1, device=device), quality)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return {part: round(n / side**2 / 1e3, 2) for part, n in counts.items()}


def activation_bytes(model: UGICM, side: int = 256) -> int:
    """Return the bytes that a float32 forward pass of one image keeps for the backward pass, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # which stays, so that no other takes its place

    was_training = model.training
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.train()(torch.rand(1, 3, side, side), torch.zeros(1), torch.full((1,), 0.5))
    model.train(was_training)
    del out  # not earlier: it holds what was kept
    return sum(kept.values())


def measured_rates(
    dtype: torch.dtype, device: torch.device | str = "cpu", channels: int = 192, repeats: int = 9
) -> dict[str, float]:
    """Measure the rate of convolutions with the current number of threads, in 10^9 multiply-accumulates per second.

    Rates are by kernel size, on the features of a 1024x2048 image at 1/8 resolution (of one four times as high and
    wide on a GPU, which smaller ones would not fill). The floor is the counted work over the highest rate.
    """
    height = 512 if torch.device(device).type == "cuda" else 128
    width, rates = 2 * height, {}
    for kernel in (1, 3):
        layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, device=device, dtype=dtype)
        layer.to(memory_format=torch.channels_last)
        x = torch.rand(1, channels, height, width, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = median_seconds(functools.partial(layer, x), repeats, device)
        rates[f"{kernel}x{kernel}"] = round(height * width * (kernel * channels) ** 2 / seconds / 1e9, 1)
    return rates
