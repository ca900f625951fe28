"""Data-parallel training under torchrun: every process computes a share of the batch.

Gradients are summed by one collective call after the backward pass rather than by DistributedDataParallel: which
parameters take part changes with the stage and the batch (frozen parts, gains, quantiles with a loss of their
own), accumulation needs no special case, and the same code runs on one process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ugicm.arguments import pick_device
from ugicm.errors import ConfigError
from ugicm.training.log import Meter

LAST_MOMENT = 0.2  # seconds for PyTorch's threads, which have nothing more to do


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes; one that a process lacks counts as zero."""
        if self.size == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([g.flatten() for g in gradients]))
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p).contiguous() if p.grad is None else p.grad.copy_(part.view_as(p))

    def broadcast(self, module: nn.Module) -> None:
        """Start all processes from the first one's weights."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                if tensor.numel():
                    dist.broadcast(tensor, 0)


def join(device: str) -> World:
    """Join the other processes that torchrun started, if any; ``device`` is auto, cpu or cuda."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda, but PyTorch finds no CUDA device here; use cpu or auto")
    place = torch.device(pick_device("cpu" if device == "cpu" else "auto"))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    rank, size = process_group("nccl" if place.type == "cuda" else "gloo")
    return World(rank, size, place)


def process_group(backend: str = "gloo") -> tuple[int, int]:
    """(rank, number of processes) under torchrun, joining its group on first use; (0, 1) otherwise."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group(backend)
    return dist.get_rank(), size


def gather(value: Any) -> list[Any]:
    """The values of all processes, in order of rank."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def merge(world: World, meter: Meter) -> Meter:
    """The meters of all processes as one. Waits for the device."""
    if world.size == 1:
        return meter
    own = {name: (float(total), meter.counts[name]) for name, total in meter.sums.items()}
    merged = Meter()
    for part in gather(own):
        for name, (total, count) in part.items():
            merged.add(name, torch.tensor(total, dtype=torch.float64), count)
    return merged


def leave() -> None:
    """End the process group, if there is one; every process must come here."""
    if dist.is_available() and dist.is_initialized():
        # PyTorch waits for its threads while it holds Python's lock, and one that still has to let go of a tensor waits
        # for the lock: for ever, one time in ten on a busy machine.
        time.sleep(LAST_MOMENT)
        dist.destroy_process_group()
