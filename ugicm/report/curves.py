"""Measure curves: every codec at its settings over a dataset, decoded for every preference, scored by every evaluator.

Bitstreams and evaluators' records are kept on disk as soon as they are made, under names that contain what they depend
on. An interrupted measurement continues, an extended one adds what is missing, and a changed model, codec version or
network shares nothing with earlier ones.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ugicm import atomic
from ugicm.arguments import spread
from ugicm.atomic import WriteError
from ugicm.errors import UgicmError
from ugicm.evaluation.codecs import ImageCodec, failures_named, sweep
from ugicm.evaluation.digests import pixels_digest
from ugicm.evaluation.results import Journal
from ugicm.evaluation.tasks.base import Evaluator, Item, process
from ugicm.images import open_rgb
from ugicm.report.datasets import Dataset

ORIGINAL = "original"  # in place of a codec's identity
_BATCH_SIZE = 8
_DEFAULT_RANGE = (0.1, 1.0)  # bits per pixel of baselines without a codec that sets the range


@dataclass
class Point:
    """A codec at one setting and preference.

    ``rates``: bits per pixel by image key; ``records``: by evaluator and image key; ``scores``: by metric title.
    """

    setting: float
    rates: dict[str, float]
    records: dict[str, dict[str, dict]]
    scores: dict[str, float | None]

    @property
    def bpp(self) -> float:
        """Bits per pixel, averaged over images."""
        return sum(self.rates.values()) / len(self.rates)


@dataclass
class Curve:
    """Rate points of one codec and preference, in order of rate."""

    codec: ImageCodec
    preference: float | None
    points: list[Point]

    @property
    def name(self) -> str:
        """The curve's name in legends and tables."""
        if self.preference is None:
            return self.codec.label
        described = {0.0: "human", 1.0: "machine"}.get(self.preference, f"preference {self.preference:g}")
        return f"{self.codec.label} {described}"

    @property
    def file_name(self) -> str:
        """The curve's name in names of files."""
        return self.name.replace("/", "-")


class Cache:
    """Bitstreams and records on disk."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._journals: dict[Path, Journal] = {}

    def bitstream(self, codec: ImageCodec, setting: float, digest: str) -> Path:
        """Return the path for the bitstream of the image with this pixels digest."""
        return self.folder / "bitstreams" / _file_name(codec.identity) / f"{setting:g}" / f"{digest}{codec.extension}"

    def journal(self, identity: str, setting: float, preference: float | None, evaluator: Evaluator) -> Journal:
        """Return the records of one evaluator for a codec's identity, setting and preference."""
        point = f"{setting:g}" if preference is None else f"{setting:g} for {preference:g}"
        path = self.folder / "records" / _file_name(identity) / point / f"{_file_name(evaluator.identity)}.jsonl"
        if path not in self._journals:
            self._journals[path] = Journal(path)
        return self._journals[path]


class CachedCodec:
    """An image codec that reads bitstreams from the cache, and writes those that are missing."""

    def __init__(self, codec: ImageCodec, cache: Cache):
        self._codec, self._cache = codec, cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, image: Image.Image, setting: float) -> bytes:
        path = self._cache.bitstream(self._codec, setting, pixels_digest(image))
        if path.is_file():
            return path.read_bytes()
        data = self._codec.encode(image, setting)
        atomic.write(path, data)
        return data


def measure_curves(
    dataset: Dataset, codecs: Sequence[ImageCodec], args: argparse.Namespace, cache: Cache
) -> list[Curve]:
    """Return all curves of a dataset, with the options of ``ugicm report``.

    Codecs with preferences come first in ``codecs``, and set the range of rates of the others. An image that a codec or
    a network fails on is left out of all curves: curves over different images could not be compared.
    """
    low, high = args.bpp_range or _DEFAULT_RANGE
    rates: list[float] = []
    measured: list[tuple[ImageCodec, list[float]]] = []
    score_originals(dataset, cache)
    for codec in codecs:
        cached = CachedCodec(codec, cache)
        if None in codec.preferences:
            settings = sweep(cached, _probes(dataset, cached), low, high, args.points)
        else:
            settings = sorted(set(args.qualities)) if codec.settings is None else list(codec.settings)
        for setting in settings:
            measure_point(dataset, cached, setting, cache)
        measured.append((codec, settings))
        if None not in codec.preferences and args.bpp_range is None:
            rates += [point.bpp for curve in collect(dataset, codec, settings, cache) for point in curve.points]
            low, high = 0.9 * min(rates), 1.1 * max(rates)
    return [curve for codec, settings in measured for curve in collect(dataset, codec, settings, cache)]


def _probes(dataset: Dataset, codec: CachedCodec) -> list[Image.Image]:
    """Return four images, evenly spread, on which a codec can be measured. Those that it fails on are left out."""
    while True:
        probes, failed = [], {}
        for item in (dataset.items[i] for i in spread(4, len(dataset.items))):
            image = open_rgb(item.path)
            try:
                with failures_named(f"{item.path}: {codec.label} at {codec.lowest:g}"):
                    codec.encode(image, codec.lowest)
            except WriteError:
                raise
            except UgicmError as error:
                failed[item.key] = str(error)
            probes.append(image)
        if not failed:
            return probes
        dataset.leave_out(failed)


def score_originals(dataset: Dataset, cache: Cache) -> None:
    """Score the originals with the evaluators that need no reference; set the reference of those that compare."""
    journals = {e.name: cache.journal(ORIGINAL, 0, None, e) for e in dataset.evaluators if not e.needs_original}
    for batch in _batches(dataset, "originals"):
        images = [(item, open_rgb(item.path)) for item in batch if _is_missing(dataset, item, journals.values())]
        _score(dataset, [(item, image, image) for item, image in images], journals)
    for evaluator in dataset.evaluators:
        if hasattr(evaluator, "reference"):
            evaluator.reference = _records(dataset, journals[evaluator.name])


def original_scores(dataset: Dataset, cache: Cache) -> dict[str, float | None]:
    """Return the scores of the originals by metric title."""
    scores = {}
    for evaluator in dataset.evaluators:
        if not evaluator.needs_original:
            scores |= _scores(evaluator, _records(dataset, cache.journal(ORIGINAL, 0, None, evaluator)))
    return scores


def measure_point(dataset: Dataset, codec: CachedCodec, setting: float, cache: Cache) -> None:
    """Encode, decode and score every image at one setting, as far as the cache does not have the records.

    An image that the codec or a network fails on is left out of the dataset.
    """
    journals = {
        preference: {e.name: cache.journal(codec.identity, setting, preference, e) for e in dataset.evaluators}
        for preference in codec.preferences
    }
    for batch in _batches(dataset, f"{codec.label} {setting:g}"):
        decoded: dict[float | None, list] = {preference: [] for preference in codec.preferences}
        for item in batch:
            missing = [p for p in codec.preferences if _is_missing(dataset, item, journals[p].values())]
            if not missing and cache.bitstream(codec, setting, dataset.digests[item.key]).is_file():
                continue
            original = open_rgb(item.path)
            try:
                with failures_named(f"{item.path}: {codec.label} at {setting:g}"):
                    data = codec.encode(original, setting)
                    images = codec.decode(data, missing) if missing else ()
            except WriteError:
                raise
            except UgicmError as error:
                dataset.leave_out({item.key: str(error)})
                continue
            for preference, image in zip(missing, images, strict=True):
                decoded[preference].append((item, image, original))
        for preference, images in decoded.items():
            _score(dataset, images, journals[preference])


def collect(dataset: Dataset, codec: ImageCodec, settings: Sequence[float], cache: Cache) -> list[Curve]:
    """Return the curves that :func:`measure_point` has put into the cache, one per preference."""
    curves = []
    for preference in codec.preferences:
        points = []
        for setting in settings:
            rates, records, scores = {}, {}, {}
            for item in dataset.items:
                path = cache.bitstream(codec, setting, dataset.digests[item.key])
                width, height = dataset.sizes[item.key]
                rates[item.key] = 8 * path.stat().st_size / (width * height)
            for evaluator in dataset.evaluators:
                journal = cache.journal(codec.identity, setting, preference, evaluator)
                records[evaluator.name] = _records(dataset, journal)
                scores |= _scores(evaluator, records[evaluator.name])
            points.append(Point(setting, rates, records, scores))
        curves.append(Curve(codec, preference, sorted(points, key=lambda point: point.bpp)))
    return curves


def _batches(dataset: Dataset, title: str) -> Iterator[list[Item]]:
    """Yield the images in batches, and show the progress."""
    items = dataset.items  # without those that are left out meanwhile
    with tqdm(total=len(items), desc=f"{dataset.name}: {title}", unit="image", disable=not sys.stderr.isatty(),
              leave=False) as bar:  # fmt: skip
        for start in range(0, len(items), _BATCH_SIZE):
            yield (batch := items[start : start + _BATCH_SIZE])
            bar.update(len(batch))


def _is_missing(dataset: Dataset, item: Item, journals: Iterable[Journal]) -> bool:
    return any(dataset.record_names[item.key] not in journal.records for journal in journals)


def _score(dataset: Dataset, images: list, journals: dict[str, Journal]) -> None:
    """Score (item, image, original) triples with the evaluators whose journal lacks them, and add the records.

    Images that a network fails on are left out of the dataset.
    """
    for evaluator in dataset.evaluators:
        journal = journals.get(evaluator.name)
        new = [triple for triple in images if journal and _is_missing(dataset, triple[0], [journal])]
        if new:
            evaluator.reset()
            dataset.leave_out(process(evaluator, [item for item, _, _ in new], new, evaluator.prepare))
            journal.add({dataset.record_names[key]: record for key, record in evaluator.records.items()})


def _records(dataset: Dataset, journal: Journal) -> dict[str, dict]:
    return {item.key: journal.records[dataset.record_names[item.key]] for item in dataset.items}


def _scores(evaluator: Evaluator, records: dict[str, dict]) -> dict[str, float | None]:
    return {evaluator.title(metric): value for metric, value in evaluator.summarize(records).items()}


def _file_name(identity: str) -> str:
    """Return a file name for an identity: its readable beginning, and a digest."""
    start = re.sub(r"\W+", "-", identity.split(" weights ")[0])[:40].strip("-")
    return f"{start}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
