"""The least time a network's arithmetic can take on this machine: its multiply-accumulates over a measured rate."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ugicm.models.ugicm import UGICM


def synchronize(device: torch.device | str) -> None:
    """Wait for what a GPU has been given to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turns(
    works: Sequence[Callable[[], object]], repeats: int, device: torch.device | str = "cpu"
) -> list[list[float]]:
    """Wall-clock seconds of every call of each of ``works``, after one warm-up call.

    They take turns: what else the machine does changes with time, and then meets all of them alike.
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
    """Median wall-clock seconds of ``work``, after one warm-up call."""
    return statistics.median(seconds_in_turns([work], repeats, device)[0])


def median_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios of calls that took turns."""
    return round(statistics.median(a / b for a, b in zip(seconds, others, strict=True)), 3)


def count_macs(model: UGICM, side: int = 256) -> dict[str, float]:
    """Thousand multiply-accumulates of convolutions and linear layers per pixel: analysis, entropy, synthesis.

    Layers on packed halves are counted as they run, for a human viewer; products inside attention are not counted.
    """
    parts = {"g_a": [model.g_a], "entropy": [model.h_a, model.parser], "g_s": [model.g_s]}
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
    with torch.enable_grad():  # without, wide convolutions work by bands and their hooks are passed by
        quality = torch.full((1,), 0.5, device=device) if model.has_quality else None
        model.eval()(torch.rand(1, 3, side, side, device=device), torch.zeros(1, device=device), quality)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return {part: round(n / side**2 / 1e3, 2) for part, n in counts.items()}


def measured_rates(
    dtype: torch.dtype, device: torch.device | str = "cpu", channels: int = 192, repeats: int = 9
) -> dict[str, float]:
    """What convolutions reach here with the threads that are set, in 10^9 multiply-accumulates a second.

    By kernel size, on features of the size that a 1024x2048 image has at 1/8 resolution (four times that, each way,
    on a GPU, which would not be busy otherwise). The floor of a roofline is counted work over the highest of these.
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
