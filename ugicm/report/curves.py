"""Measuring curves: contenders at their settings over a data set, decoded for every viewer, seen by every evaluator.

Everything that costs time is kept on disk as it is made: streams, and evaluators' records, one per codec, setting,
viewer, evaluator and image, named by what they depend on. An interrupted measurement continues, an extended one
adds what is missing, and one with a changed model, codec version or judge shares nothing with the old.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ugicm import atomic
from ugicm.errors import ConfigError, UgicmError
from ugicm.evaluation.codecs import Contender, failures_named
from ugicm.evaluation.digests import file_digest, pixels_digest
from ugicm.evaluation.results import Journal
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.images import open_rgb

ORIGINAL = "original"


@dataclass
class Dataset:
    """Images and those who judge them.

    Attributes, by image key: ``digests`` and ``sizes`` of pixels; ``names`` under which records are kept, which
    depend on the image, its key and what is true about it; ``failed``, why an image is left out.
    """

    name: str
    items: list[Item]
    evaluators: list[Evaluator]
    folder: Path
    check: Callable[[Item, Image.Image], str | None] | None = None
    class_names: Sequence[str] | None = None
    digests: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def read(self) -> Dataset:
        """Look at every image once; those that cannot be read move to ``failed``. Raises ConfigError where none is
        left."""
        good = []
        for item in self.items:
            try:
                image = open_rgb(item.path)
                complaint = self.check(item, image) if self.check else None
                if complaint:
                    raise ConfigError(complaint)
            except UgicmError as error:
                self.failed[item.key] = str(error)
                continue
            self.digests[item.key], self.sizes[item.key] = pixels_digest(image), image.size
            truth = file_digest(item.target) if isinstance(item.target, Path) else item.target
            self.names[item.key] = f"{self.digests[item.key]} {truth} {item.key}"
            good.append(item)
        if not good:
            raise ConfigError(f"{self.folder}: no image can be used: {next(iter(self.failed.values()))}")
        self.items = good
        return self


@dataclass
class Point:
    """A contender at one setting, for one viewer. ``bits`` by image key; ``records`` by evaluator and image key;
    ``scores`` by title."""

    setting: float
    bits: dict[str, int]
    bpp: float
    records: dict[str, dict[str, dict]]
    scores: dict[str, float | None]


@dataclass
class Curve:
    """Points of one contender and viewer, from small files to large."""

    name: str
    contender: Contender
    viewer: float | None
    points: list[Point]


class Cache:
    """Streams and records on disk."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._journals: dict[Path, Journal] = {}

    def stream(self, contender: Contender, setting: float, digest: str) -> Path:
        """Where the stream of an image with this digest is, or would be."""
        return self.folder / "streams" / _named(contender.identity) / f"{setting:g}" / f"{digest}{contender.extension}"

    def journal(self, contender: str, setting: float, viewer: float | None, evaluator: Evaluator) -> Journal:
        """Records of one evaluator. ``contender``: its identity."""
        point = f"{setting:g}" if viewer is None else f"{setting:g} for {viewer:g}"
        path = self.folder / "records" / _named(contender) / point / f"{_named(evaluator.identity)}.jsonl"
        if path not in self._journals:
            self._journals[path] = Journal(path)
        return self._journals[path]

    def forget(self) -> None:
        """Read journals again when they are next asked for: other processes may have written."""
        self._journals = {}


class Cached:
    """A contender whose streams are kept: one that was written before is read, and not made again."""

    def __init__(self, contender: Contender, cache: Cache):
        self._contender, self._cache = contender, cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._contender, name)

    def encode(self, image: Image.Image, setting: float) -> bytes:
        path = self._cache.stream(self._contender, setting, pixels_digest(image))
        if path.is_file():
            return path.read_bytes()
        data = self._contender.encode(image, setting)
        atomic.write(path, data)
        return data


def score_originals(dataset: Dataset, cache: Cache, batch_size: int, advance: Callable[[int], None]) -> None:
    """Records of those evaluators that can judge originals; sets what agreement is measured against."""
    judges = [e for e in dataset.evaluators if not e.needs_original]
    todo = {e.name: cache.journal(ORIGINAL, 0, None, e) for e in judges}
    for batch in _batches(dataset.items, batch_size):
        looked = [(item, open_rgb(item.path)) for item in batch if _missing(dataset, item, todo.values())]
        for evaluator in judges:
            _see(evaluator, dataset, [(item, image, image) for item, image in looked], todo[evaluator.name])
        advance(len(batch))
    for evaluator in judges:
        if hasattr(evaluator, "reference"):
            evaluator.reference = _recall(dataset, todo[evaluator.name])


def original_scores(dataset: Dataset, cache: Cache) -> dict[str, float | None]:
    """Scores of the originals by title."""
    scores = {}
    for evaluator in dataset.evaluators:
        if not evaluator.needs_original:
            records = _recall(dataset, cache.journal(ORIGINAL, 0, None, evaluator))
            scores.update(_titled(evaluator, records))
    return scores


def measure(
    dataset: Dataset,
    contender: Cached,
    setting: float,
    cache: Cache,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Encode, decode and judge every image at one setting, as far as the cache does not know the outcome.

    Raises UgicmError naming the image where a codec fails: a curve with holes could not be compared.
    """
    journals = {
        (viewer, evaluator.name): cache.journal(contender.identity, setting, viewer, evaluator)
        for viewer in contender.viewers
        for evaluator in dataset.evaluators
    }
    for batch in _batches(dataset.items, batch_size):
        decoded: dict[float | None, list] = {viewer: [] for viewer in contender.viewers}
        for item in batch:
            wanted = [
                v
                for v in contender.viewers
                if _missing(dataset, item, (journals[v, e.name] for e in dataset.evaluators))
            ]
            path = cache.stream(contender, setting, dataset.digests[item.key])
            if not wanted and path.is_file():
                continue
            original = open_rgb(item.path)
            with failures_named(contender, setting, item.path):
                data = contender.encode(original, setting)
                for viewer, image in zip(wanted, contender.decode(data, wanted) if wanted else (), strict=True):
                    decoded[viewer].append((item, image, original))
        for viewer, looked in decoded.items():
            for evaluator in dataset.evaluators:
                _see(evaluator, dataset, looked, journals[viewer, evaluator.name])
        advance(len(batch))


def collect(dataset: Dataset, contender: Contender, settings: Sequence[float], cache: Cache) -> list[Curve]:
    """Curves from what is in the cache after :func:`measure`; one per viewer."""
    curves = []
    for viewer in contender.viewers:
        points = []
        for setting in settings:
            bits = {
                item.key: 8 * cache.stream(contender, setting, dataset.digests[item.key]).stat().st_size
                for item in dataset.items
            }
            rates = [bits[key] / (width * height) for key, (width, height) in dataset.sizes.items()]
            records, scores = {}, {}
            for evaluator in dataset.evaluators:
                found = _recall(dataset, cache.journal(contender.identity, setting, viewer, evaluator))
                records[evaluator.name] = found
                scores.update(_titled(evaluator, found))
            points.append(Point(setting, bits, sum(rates) / len(rates), records, scores))
        points.sort(key=lambda point: point.bpp)
        curves.append(Curve(curve_name(contender, viewer), contender, viewer, points))
    return curves


def curve_name(contender: Contender, viewer: float | None) -> str:
    """A contender for one viewer, as legends show it."""
    if viewer is None:
        return contender.label
    return f"{contender.label} {({0.0: 'human', 1.0: 'machine'}).get(viewer, f'β = {viewer:g}')}"


def _batches(items: list[Item], size: int) -> list[list[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _missing(dataset: Dataset, item: Item, journals) -> bool:
    return any(dataset.names[item.key] not in journal.records for journal in journals)


def _see(evaluator: Evaluator, dataset: Dataset, looked: list, journal: Journal) -> None:
    """Show (item, image, original) to an evaluator, but for those whose records are there."""
    fresh = [one for one in looked if dataset.names[one[0].key] not in journal.records]
    if not fresh:
        return
    evaluator.reset()
    evaluator.process([item for item, _, _ in fresh], [evaluator.prepare(*one) for one in fresh])
    journal.add({dataset.names[key]: record for key, record in evaluator.records.items()})


def _recall(dataset: Dataset, journal: Journal) -> dict[str, dict]:
    return {item.key: journal.records[dataset.names[item.key]] for item in dataset.items}


def _titled(evaluator: Evaluator, records: dict[str, dict]) -> dict[str, float | None]:
    return {evaluator.title(metric): value for metric, value in evaluator.summarize(records).items()}


def _named(identity: str) -> str:
    """A file name for an identity: its first word, for people, and a digest."""
    first = re.sub(r"\W+", "-", identity.split(" weights ")[0])[:40].strip("-")
    return f"{first}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
