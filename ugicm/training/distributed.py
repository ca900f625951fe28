"""Data-parallel training under torchrun: every process computes a share of the batch.

Gradients are summed by one collective call after the backward pass instead of by DistributedDataParallel. The set of
trained parameters may then change with stage and batch (frozen submodules, gains, quantiles with their own loss),
accumulation needs no special case, and the same code runs on one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ugicm.arguments import pick_device
from ugicm.errors import ConfigError
from ugicm.training.log import Meter


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over all processes, in place; a missing gradient counts as zero."""
        if self.size == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([g.flatten() for g in gradients]))
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p).contiguous() if p.grad is None else p.grad.copy_(part.view_as(p))

    def broadcast(self, module: nn.Module) -> None:
        """Copy the weights and buffers of the main process to all processes."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                if tensor.numel():
                    dist.broadcast(tensor, 0)


def join(device: str) -> World:
    """Join the process group under torchrun and return this process's world.

    ``device`` is "auto", "cpu" or "cuda". Raises ConfigError if CUDA is not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda is not available; use cpu or auto")
    place = torch.device(pick_device("cpu" if device == "cpu" else "auto"))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World(0, 1, place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(dist.get_rank(), size, place)


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in order of rank."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def merge(world: World, meter: Meter) -> Meter:
    """Return one meter with the values of all processes. Waits for the device."""
    if world.size == 1:
        return meter
    own = {name: (float(total), meter.counts[name]) for name, total in meter.sums.items()}
    merged = Meter()
    for part in gather(own):
        for name, (total, count) in part.items():
            merged.add(name, torch.tensor(total, dtype=torch.float64), count)
    return merged


def leave() -> None:
    """Destroy the process group, if there is one. All processes must call this."""
    if dist.is_available() and dist.is_initialized():
        # Gloo's destructor joins its threads, which may need the GIL to free the tensors of their last operation. In
        # PyTorch 2.6 destroy_process_group() runs it with the GIL held, and can deadlock. While a reference to the
        # backend exists, the destructor waits for its deletion, which releases the GIL.
        backend = dist.group.WORLD._get_backend(torch.device("cpu")) if dist.get_backend() == "gloo" else None
        dist.destroy_process_group()
        del backend
