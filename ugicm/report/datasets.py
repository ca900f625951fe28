"""The datasets of a report: their images, ground truth, and the evaluators that score them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ugicm.arguments import spread
from ugicm.errors import CheckpointError, ConfigError, UgicmError
from ugicm.evaluation.digests import file_digest, pixels_digest
from ugicm.evaluation.tasks.base import Evaluator, Item, check_distinct
from ugicm.evaluation.tasks.classification import ClassificationEvaluator
from ugicm.evaluation.tasks.classifiers import load_classifier
from ugicm.evaluation.tasks.coco import CocoEvaluator, CocoTruth
from ugicm.evaluation.tasks.detectors import load_detector
from ugicm.evaluation.tasks.fidelity import FidelityEvaluator, load_lpips
from ugicm.evaluation.tasks.labels import LabeledImages, check_classes, class_names, is_labeled, labeled_images
from ugicm.evaluation.tasks.sources import folder_items
from ugicm.images import open_rgb


@dataclass
class Dataset:
    """Images and the evaluators that score them.

    Attributes, by image key: ``digests`` and ``sizes`` (width, height) of pixels; ``record_names``, which depend on the
    image, its key and its target; ``failed``, why an image is left out.
    """

    name: str
    items: list[Item]
    evaluators: list[Evaluator]
    folder: Path
    check: Callable[[Item, Image.Image], None] | None = None
    class_names: Sequence[str] | None = None
    digests: dict[str, str] = field(default_factory=dict)
    record_names: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def leave_out(self, failed: dict[str, str]) -> None:
        """Move images, given with the reason, to ``failed``. Raises ConfigError if none remains."""
        self.failed.update(failed)
        self.items = [item for item in self.items if item.key not in failed]
        if not self.items:
            raise ConfigError(f"{self.folder}: no image can be used: {next(iter(self.failed.values()))}")

    def read(self) -> Dataset:
        """Read every image once; invalid ones move to ``failed``. Raises ConfigError if none is valid."""
        check_distinct([evaluator.name for evaluator in self.evaluators], "networks")
        failed = {}
        for item in self.items:
            try:
                image = open_rgb(item.path)
                if self.check:
                    self.check(item, image)
            except UgicmError as error:
                failed[item.key] = str(error)
                continue
            self.digests[item.key], self.sizes[item.key] = pixels_digest(image), image.size
            target = file_digest(item.target) if isinstance(item.target, Path) else item.target
            self.record_names[item.key] = f"{self.digests[item.key]} {target} {item.key}"
        self.leave_out(failed)
        return self


def load_datasets(args: argparse.Namespace, device: str, notes: list[str]) -> list[Dataset]:
    """Return the datasets of the arguments of ``ugicm report``, with their evaluators.

    Networks that were named must load. A default network without weights is left out, with an entry in ``notes``.
    """
    folders = _named_folders(args)
    truths = [CocoTruth(path) for path in args.coco]
    networks = _Networks(args, device, notes)
    datasets = []
    for name, folder in folders:
        dataset = Dataset(name, [], [FidelityEvaluator(), *networks.lpips()], folder)
        truth = next((t for t in truths if all(item.path.is_file() for item in t.items(folder))), None)
        if truth is not None:
            truths.remove(truth)
            dataset.items, dataset.check = truth.items(folder), truth.check_size
            dataset.evaluators += networks.detection(truth)
        elif args.labels or is_labeled(folder):
            labeled = labeled_images(folder, args.labels)
            dataset.items = labeled.items
            evaluators, dataset.class_names = networks.classification(labeled)
            dataset.evaluators += evaluators
        else:
            dataset.items = folder_items(folder)
            dataset.evaluators += networks.detection(None) if args.detectors else []
        if args.limit:
            dataset.items = [dataset.items[i] for i in spread(args.limit, len(dataset.items))]
        datasets.append(dataset.read())
    if truths:
        raise ConfigError(f"{truths[0].path}: its images are in none of the folders given with -d")
    if args.classifiers and not any(dataset.class_names for dataset in datasets):
        raise ConfigError("--classifiers: no folder has labels; give --labels FILE, or a labels.csv in the folder")
    return datasets


def _named_folders(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Return (name, folder) for each ``-d [NAME=]DIR``. Raises ConfigError for invalid names and missing folders."""
    folders = []
    for text in args.dataset:
        name, separator, folder = text.partition("=")
        if not separator or Path(text).exists():
            name, folder = Path(text).resolve().name, text
        if name in ("", ".", "..") or Path(name).name != name:  # curves are written to a folder of this name
            raise ConfigError(
                f"-d {text}: {name!r} cannot name a folder of the report; give -d NAME=DIR, NAME without /"
            )
        if not Path(folder).is_dir():
            raise ConfigError(f"{folder}: no such folder")
        for path in map(Path, filter(None, (args.output, args.cache))):
            if path.resolve().is_relative_to(Path(folder).resolve()):
                raise ConfigError(f"{path}: inside {folder}, all of whose images are measured; choose another folder")
        folders.append((name, Path(folder)))
    names = [name for name, _ in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"two folders are called {max(names, key=names.count)}: give names: -d NAME=DIR")
    if unknown := sorted(set(args.viewer_datasets or ()) - set(names)):
        raise ConfigError(f"--viewer-datasets: {unknown[0]} not found; available: {', '.join(names)}")
    if args.labels and len(folders) > 1:
        raise ConfigError("--labels is for one folder; with several, put a labels.csv into the labeled folder")
    return folders


class _Networks:
    """Evaluators of the networks in the arguments, each loaded once."""

    def __init__(self, args: argparse.Namespace, device: str, notes: list[str]):
        self.args, self.device, self.notes = args, device, notes
        self._loaded: dict[str, list] = {}

    def _load(self, texts: Sequence[str] | None, default: str, load: Callable, scores: str) -> list:
        """Return the networks of ``texts``; the default one, if there are none and it is available."""
        if scores not in self._loaded:
            try:
                self._loaded[scores] = [load(text, self.device) for text in texts or [default]]
            except (ConfigError, CheckpointError) as error:
                if texts:
                    raise
                self._loaded[scores] = []
                self.notes.append(f"{scores} was not measured: {error}")
            check_distinct([network.name for network in self._loaded[scores]], "networks")
        return self._loaded[scores]

    def lpips(self) -> list[Evaluator]:
        if self.args.lpips == "none":
            return []
        return self._load(self.args.lpips and [self.args.lpips], "alex", load_lpips, "LPIPS")

    def classification(self, labeled: LabeledImages) -> tuple[list[Evaluator], Sequence[str] | None]:
        classifiers = self._load(self.args.classifiers, "resnet101", load_classifier, "accuracy")
        for classifier in classifiers:
            check_classes(labeled, classifier.classes, classifier.name)
        names = class_names(classifiers[0].classes) if classifiers else None
        targets = {item.key: item.target for item in labeled.items}
        return [ClassificationEvaluator(classifier, targets) for classifier in classifiers], names

    def detection(self, truth: CocoTruth | None) -> list[Evaluator]:
        detectors = self._load(self.args.detectors, "maskrcnn_resnet50_fpn", load_detector, "average precision")
        return [CocoEvaluator(detector, truth) for detector in detectors]
