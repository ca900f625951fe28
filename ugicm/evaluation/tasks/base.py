"""The evaluator interface and the evaluation loop.

The interface is that of detectron2: ``reset``, ``process`` a batch, ``evaluate``. An evaluator keeps one small record
per image, and its scores are a function of the records. A run can therefore be continued from stored records, and gives
the same scores.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ugicm.errors import ConfigError, ImageError, UgicmError, first_line
from ugicm.evaluation.tasks.sources import Source
from ugicm.images import open_rgb, upright_size


@dataclass(frozen=True)
class Item:
    """An image of a dataset.

    Attributes:
        key: path relative to the dataset's folder, with forward slashes.
        path: the original image.
        target: ground truth, such as a class index, an image id or the path of a mask.
    """

    key: str
    path: Path
    target: Any = None


class Evaluator(ABC):
    """Scores of one network on one task.

    Attributes:
        name: name in tables and files.
        identity: everything that the records depend on (weights, preprocessing). Used as a cache key.
        metrics: names of the scores that :meth:`evaluate` returns.
        headline: the metrics that a report shows.
        lower_is_better: the metrics for which lower values are better.
        noisy: whether the scores are counts over few images, so that curves are made monotone before comparison.
        needs_original: whether :meth:`prepare` requires the original image.
        records: JSON-serializable record of each image by key.
    """

    name: str
    identity: str
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    lower_is_better: tuple[str, ...] = ()
    noisy = True
    needs_original = False

    def __init__(self):
        self.records: dict[str, dict] = {}

    def reset(self) -> None:
        """Remove all records."""
        self.records = {}

    @staticmethod
    def prepare(item: Item, image: Image.Image, original: Image.Image | None) -> Any:
        """Return the input of :meth:`process` for an RGB image. Must be picklable, for worker processes."""
        return image

    @abstractmethod
    def process(self, items: Sequence[Item], inputs: Sequence[Any]) -> None:
        """Add the records of a batch of images."""

    @abstractmethod
    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return the scores of ``records``, independent of their order. None if a score is undefined."""

    def evaluate(self) -> dict[str, float | None]:
        """Return the scores of all images since :meth:`reset`."""
        return self.summarize({key: self.records[key] for key in sorted(self.records)})

    def title(self, metric: str) -> str:
        """Return the name of a metric that distinguishes it from those of other evaluators."""
        return f"{metric} ({self.name})"

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        """Return by image key the values whose mean is the score, without the images that have none.

        None if the score is not a mean over images.
        """
        return None


@dataclass
class Task:
    """What a task script evaluates.

    Attributes:
        name: name of the task.
        items: images of the dataset.
        evaluators: evaluators of the images under test.
        references: evaluators of the same networks that first process the originals, unless these are the images
            under test. Their records are the ``reference`` of the evaluators.
        truth: digest of the ground truth. Default: a digest of the targets.
    """

    name: str
    items: Sequence[Item]
    evaluators: Sequence[Evaluator]
    references: Sequence[Evaluator] = ()
    truth: str | None = None


@dataclass
class TaskOutcome:
    """Result of a run, by image key: bits per pixel, if the source has bitstreams, and error messages."""

    bpp: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(
    evaluators: Sequence[Evaluator],
    items: Sequence[Item],
    source: Source,
    batch_size: int = 16,
    workers: int = 0,
    title: str = "images",
) -> TaskOutcome:
    """Process every image with every evaluator.

    An image that cannot be loaded, prepared or processed is excluded from all scores and reported in
    ``TaskOutcome.failed``.
    """
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    loader = DataLoader(
        _ImageDataset(evaluators, items, source),
        batch_size,
        num_workers=workers if source.parallel else 0,
        collate_fn=list,
    )
    outcome = TaskOutcome()
    with tqdm(total=len(items), desc=title, unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:
        for batch in loader:
            outcome.failed.update({item.key: error for item, _, _, error in batch if error})
            outcome.bpp.update({item.key: bpp for item, _, bpp, _ in batch if bpp is not None})
            good = [(item, inputs) for item, inputs, _, error in batch if not error]
            for index, evaluator in enumerate(evaluators):
                inputs = {item.key: inputs[index] for item, inputs in good if item.key not in outcome.failed}
                items = [item for item, _ in good if item.key in inputs]
                outcome.failed.update(process(evaluator, items, [*inputs.values()]))
            bar.update(len(batch))
    for key in outcome.failed:  # all scores and rates are of the same images
        outcome.bpp.pop(key, None)
        for evaluator in evaluators:
            evaluator.records.pop(key, None)
    return outcome


def process(
    evaluator: Evaluator, items: Sequence[Item], inputs: Sequence[Any], prepare: Callable[..., Any] | None = None
) -> dict[str, str]:
    """Process a batch, or if that fails its images one by one. Return the error messages of the images that fail.

    With ``prepare``, ``inputs`` are its arguments instead.
    """
    if not items:
        return {}
    try:
        evaluator.process(items, [prepare(*arguments) for arguments in inputs] if prepare else inputs)
    except ConfigError:
        raise
    except Exception as error:  # networks, also those of users, refuse their input in many ways
        if len(items) == 1:
            return {items[0].key: _explain(evaluator, error)}
        failed: dict[str, str] = {}
        for item, one in zip(items, inputs, strict=True):
            failed |= process(evaluator, [item], [one], prepare)
        return failed
    return {}


class _ImageDataset:
    """Images under test, as (item, input of every evaluator, bits per pixel or None, error message or None)."""

    def __init__(self, evaluators: Sequence[Evaluator], items: Sequence[Item], source: Source):
        self.prepare = [evaluator.prepare for evaluator in evaluators]
        self.items, self.source = items, source
        self.needs_original = any(evaluator.needs_original for evaluator in evaluators) or source.needs_original

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, list[Any], float | None, str | None]:
        item = self.items[index]
        try:
            original = open_rgb(item.path) if self.needs_original else None
            image, size = self.source.load(item, original)
            if original is not None or item.path.is_file():
                width, height = upright_size(item.path) if original is None else original.size
                if image.size != (width, height):
                    raise ImageError(
                        f"the image under test is {image.width}x{image.height}, but the original is {width}x{height}: "
                        f"{item.path}; check that it was decoded from this original"
                    )
            inputs = [prepare(item, image, original) for prepare in self.prepare]
        except (UgicmError, OSError, RuntimeError, MemoryError) as error:  # also of preprocessing an odd image
            return item, [], None, str(error) or repr(error)
        return item, inputs, None if size is None else 8 * size / (image.width * image.height), None


def _explain(evaluator: Evaluator, error: Exception) -> str:
    if isinstance(error, UgicmError):
        return str(error)
    return f"{evaluator.name}: {type(error).__name__}: {first_line(error)}"


def check_distinct(names: Sequence[str], kind: str) -> None:
    """Raise ConfigError if two names are equal."""
    if len(set(names)) < len(names):
        raise ConfigError(f"two {kind} have the name {max(names, key=names.count)}: set a name with :label=NAME")


def make_deterministic() -> None:
    """Configure PyTorch for reproducible results on one machine."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(0)
