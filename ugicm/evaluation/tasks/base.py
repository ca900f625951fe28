"""The evaluator protocol, and the one loop that feeds every evaluator.

An evaluator looks at images one batch at a time and keeps one small record per image; the scores of a
run are a function of the records. So a run can be split over processes, interrupted and continued, or
scored again on some of its images, and gives the same numbers (but for the last digits of a log-loss: classifiers
alone see several images at once).

``torchrun --nproc_per_node=K SCRIPT ...`` splits a run: each process takes every K-th *batch*, so that
every image is computed in the same company as in a single process, and to the last bit alike.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ugicm.errors import UgicmError
from ugicm.evaluation.tasks.sources import Source
from ugicm.images import open_rgb


@dataclass(frozen=True)
class Item:
    """An image of a data set. ``key``: its path inside the data set's folder, with slashes; ``target``:
    what is true about it (a class index, an image id, a mask's path ...)."""

    key: str
    path: Path
    target: Any = None


class Evaluator(ABC):
    """Scores of one task by one network.

    Attributes:
        name: what tables and files call it.
        identity: everything its records depend on (weights, preprocessing), for caches and the record of a run.
        metrics: names of the scores that :meth:`evaluate` gives.
        headline: those of them that a report shows.
        noisy: whether scores are counted over few cases, so that curves of them are made monotone first.
        falling: those of ``metrics`` that are better when lower.
        needs_original: whether :meth:`prepare` must be given the original image too.
        records: by image key, what was found on it; plain values that json can hold.
    """

    name: str
    identity: str
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    noisy = True
    falling: tuple[str, ...] = ()
    needs_original = False

    def __init__(self):
        self.records: dict[str, dict] = {}

    def reset(self) -> None:
        """Forget all images."""
        self.records = {}

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> Any:
        """What :meth:`process` takes, from an RGB image. Runs in worker processes, to which it is sent: an
        attribute or static method that does not hold the network."""
        return image

    @abstractmethod
    def process(self, items: Sequence[Item], prepared: Sequence[Any]) -> None:
        """Look at a batch of images and add their records."""

    @abstractmethod
    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Scores from records, in an order that does not depend on how they came; None for one that does
        not exist (AP of small objects where there are none)."""

    def evaluate(self) -> dict[str, float | None]:
        """Scores over all images since :meth:`reset`."""
        return self.summarize({key: self.records[key] for key in sorted(self.records)})

    def titled(self) -> dict[str, float | None]:
        """:meth:`evaluate`, under names that say whose scores they are."""
        return {self.title(metric): value for metric, value in self.evaluate().items()}

    def title(self, metric: str) -> str:
        """The name of a metric among those of other evaluators."""
        return f"{metric} ({self.name})"

    def contributions(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        """By image key, values whose mean is the score; None where a score is no mean over images."""
        return None

    def describe(self) -> dict[str, Any]:
        """Facts for the record of a run."""
        return {"name": self.name, "identity": self.identity}


@dataclass
class Outcome:
    """What a run over images met. ``bits``: file sizes by key, where the source knows; ``pixels`` likewise;
    ``failed``: reasons by key."""

    bits: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def bpp(self) -> float | None:
        """Mean bits per pixel over images, where every image's file size is known."""
        if not self.bits or self.bits.keys() != self.pixels.keys():
            return None
        return sum(self.bits[k] / self.pixels[k] for k in sorted(self.bits)) / len(self.bits)


def run(
    evaluators: Sequence[Evaluator],
    items: Sequence[Item],
    source: Source,
    batch_size: int = 16,
    workers: int = 0,
    title: str = "images",
    check: Callable[[Item, Image.Image], str | None] | None = None,
) -> Outcome:
    """Show every image of ``items``, as ``source`` has it, to every evaluator; their records are
    complete on every process afterwards.

    An image that cannot be read, or about which ``check`` (which must pickle) has a complaint, is left out
    and reported in ``Outcome.failed``; it stops nothing.
    """
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from ugicm.training.distributed import gather, process_group

    rank, world = process_group()
    images = _Images(evaluators, items, source, check)
    batches = [range(i, min(i + batch_size, len(items))) for i in range(0, len(items), batch_size)][rank::world]
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers if source.parallel else 0,
        collate_fn=list,
    )
    outcome = Outcome()
    silent = rank > 0 or not sys.stderr.isatty()
    with tqdm(total=sum(map(len, batches)), desc=title, unit="image", disable=silent, leave=False) as bar:
        for batch in loader:
            good = []
            for looked in batch:
                if looked.reason:
                    outcome.failed[looked.item.key] = looked.reason
                else:
                    good.append(looked)
                    outcome.pixels[looked.item.key] = looked.pixels
                    if looked.bits is not None:
                        outcome.bits[looked.item.key] = looked.bits
            for index, evaluator in enumerate(evaluators):
                if good:
                    evaluator.process([g.item for g in good], [g.prepared[index] for g in good])
            bar.update(len(batch))
    if world > 1:
        for part in gather([vars(outcome), [e.records for e in evaluators]]):
            for name, values in part[0].items():
                getattr(outcome, name).update(values)
            for evaluator, records in zip(evaluators, part[1], strict=True):
                evaluator.records.update(records)
    return outcome


@dataclass
class _Looked:
    item: Item
    prepared: list[Any] = field(default_factory=list)
    bits: int | None = None
    pixels: int = 0
    reason: str = ""


class _Images:
    """The dataset of a loader: reading, decoding and preprocessing of one image."""

    def __init__(self, evaluators, items, source, check):
        self.prepare = [e.prepare for e in evaluators]
        self.items, self.source, self.check = items, source, check
        self.needs_original = any(e.needs_original for e in evaluators) or source.needs_original

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Looked:
        item = self.items[index]
        try:
            original = open_rgb(item.path) if self.needs_original else None
            image, size = self.source.load(item, original)
            reason = self.check(item, image) if self.check else None
            if reason:
                return _Looked(item, reason=reason)
            if original is not None and original.size != image.size:
                return _Looked(item, reason=_sizes(image, original))
            return _Looked(
                item,
                [prepare(item, image, original) for prepare in self.prepare],
                None if size is None else 8 * size,
                image.width * image.height,
            )
        except (UgicmError, OSError) as error:
            return _Looked(item, reason=str(error))


def _sizes(image: Image.Image, original: Image.Image) -> str:
    return (
        f"the image under test is {image.width}x{image.height}, "
        f"the original {original.width}x{original.height}: not decoded from it"
    )


def by_shape(tensors: Sequence) -> Iterable[tuple[list[int], Any]]:
    """Stack tensors of equal shape: (indices, tensor [n, ...]) per shape, in order of first appearance."""
    import torch

    groups: dict[tuple, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tuple(tensor.shape), []).append(index)
    for indices in groups.values():
        yield indices, torch.stack([tensors[i] for i in indices])


def make_deterministic() -> None:
    """Ask PyTorch for the same numbers on every run of one machine."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(0)
