"""Data-parallel training under torchrun: every process computes a share of the batch.

Gradients are summed by one collective call after the backward pass rather than by DistributedDataParallel: which
parameters take part changes with the stage and the batch (frozen parts, gains, quantiles with a loss of their
own), accumulation needs no special case, and the same code runs on one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ugicm.errors import ConfigError
from ugicm.training.log import Meter


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
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return World(rank, size, place)


def merge(world: World, meter: Meter) -> Meter:
    """The meters of all processes as one. Waits for the device."""
    if world.size == 1:
        return meter
    own = {name: (float(total), meter.counts[name]) for name, total in meter.sums.items()}
    gathered: list = [None] * world.size
    dist.all_gather_object(gathered, own)
    merged = Meter()
    for part in gathered:
        for name, (total, count) in part.items():
            merged.add(name, torch.tensor(total, dtype=torch.float64), count)
    return merged


def leave() -> None:
    """End the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
