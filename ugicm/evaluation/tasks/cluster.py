"""Score images on a Ray cluster, with the scores of one process: batches are the same, and one actor takes a batch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ugicm.arguments import pick_device
from ugicm.evaluation.tasks.base import Evaluator, Item, Task, TaskOutcome, make_deterministic, run
from ugicm.evaluation.tasks.sources import Originals, load_source
from ugicm.ray_workers import run_on_ray

Build = Callable[[argparse.Namespace, str], Task]  # of the options and a device


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that one actor takes at a time.

    Attributes:
        items: the images.
        originals: whether the reference evaluators process the originals of these images.
        references: else the records of the originals, for each evaluator.
    """

    items: Sequence[Item]
    originals: bool
    references: Sequence[dict[str, dict]]


@dataclass
class ScoringTask:
    """Networks and images under test of an actor, from the options of the command and its folder."""

    build: Build
    args: argparse.Namespace
    folder: str

    @property
    def device(self) -> str | None:
        return self.args.device

    def start(self) -> None:
        """Load networks and codec on the device of this process."""
        import torch

        os.chdir(self.folder)
        device = pick_device(self.args.device)
        if torch.device(device).type == "cpu":
            torch.set_num_threads(1)
        self.task, self.source = self.build(self.args, device), load_source(self.args, device)
        make_deterministic()

    def attempt(self, batch: Batch) -> tuple[list[dict[str, dict]], TaskOutcome]:
        """Return the records of each evaluator, and failures."""
        evaluators = self.task.references if batch.originals else self.task.evaluators
        for evaluator, reference in zip(evaluators, batch.references):
            evaluator.reference = reference
        for evaluator in evaluators:
            evaluator.reset()
        outcome = run(evaluators, batch.items, Originals() if batch.originals else self.source, len(batch.items))
        return [evaluator.records for evaluator in evaluators], outcome


def run_on_cluster(
    task: ScoringTask, evaluators: Sequence[Evaluator], items: Sequence[Item], originals: bool, title: str
) -> TaskOutcome:
    """Process every image on the cluster ``args.ray``, as :func:`~ugicm.evaluation.tasks.base.run` does here.

    ``evaluators`` are those of this process, which get the records. With ``originals``, they are the task's references.
    """
    from tqdm import tqdm

    args = task.args
    batches = []
    for start in range(0, len(items), args.batch_size):
        part = items[start : start + args.batch_size]
        known = [] if originals else [_reference(evaluator, part) for evaluator in evaluators]
        batches.append(Batch(part, originals, [reference for reference in known if reference is not None]))
    done: dict[Batch, tuple[Any, str]] = {}
    with tqdm(total=len(items), desc=title, unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        for batch, result, error in run_on_ray(task, batches, args.ray, args.workers or None):
            done[batch] = result, error
            bar.update(len(batch.items))
    merged = TaskOutcome()
    for batch in batches:  # in this order, as the last digits of intervals depend on it
        result, error = done[batch]
        if error:
            merged.failed.update({item.key: error for item in batch.items})
            continue
        for evaluator, records in zip(evaluators, result[0], strict=True):
            evaluator.records.update(records)
        merged.bpp.update(result[1].bpp)
        merged.failed.update(result[1].failed)
    return merged


def _reference(evaluator: Evaluator, items: Sequence[Item]) -> dict[str, dict] | None:
    reference = getattr(evaluator, "reference", None)
    return None if reference is None else {item.key: reference[item.key] for item in items}
