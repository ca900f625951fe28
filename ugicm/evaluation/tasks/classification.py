"""Image classification: top-1, top-5, log-loss, and agreement with the prediction on the original image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ugicm.errors import ImageError
from ugicm.evaluation.results import mean
from ugicm.evaluation.tasks.base import Evaluator, Item
from ugicm.evaluation.tasks.classifiers import Classifier, Preprocess


class ClassificationEvaluator(Evaluator):
    """Predictions of a classifier, compared with the class indices ``targets`` by image key.

    A record holds ``top``, the five most likely classes in descending order, and ``loss``, the negative log-likelihood
    of the true class in nats. ``reference`` holds the records of the originals, for agreement, or None.
    """

    metrics = ("top-1", "top-5", "agreement", "log-loss")
    headline = ("top-1", "top-5", "agreement")
    lower_is_better = ("log-loss",)

    def __init__(self, classifier: Classifier, targets: dict[str, int]):
        super().__init__()
        self.classifier, self.name, self.identity = classifier, classifier.name, classifier.identity
        self.targets = targets
        self.reference: dict[str, dict] | None = None
        self.prepare = partial(_prepare, classifier.preprocess)

    def process(self, items: Sequence[Item], inputs: Sequence[Tensor]) -> None:
        for indices, images in _stack_by_shape(inputs):
            logits = self.classifier.logits(images)
            if not logits.isfinite().all():
                raise ImageError(f"{self.name}: the network's outputs are not finite")
            top = logits.topk(min(5, self.classifier.classes), dim=1).indices.tolist()
            losses = -logits.double().log_softmax(dim=1)
            for index, classes, loss in zip(indices, top, losses, strict=True):
                key = items[index].key
                self.records[key] = {"top": classes}
                if key in self.targets:
                    self.records[key]["loss"] = loss[self.targets[key]].item()

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Return top-1, top-5 and agreement in percent, and the mean log-loss in nats.

        Agreement is the share of images whose first prediction equals that on the original.
        """
        values = {metric: self.per_image_scores(metric, records) for metric in self.metrics}
        return {metric: mean(scores.values()) if scores else None for metric, scores in values.items()}

    def per_image_scores(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        if metric == "agreement":
            if self.reference is None:
                return None
            return {key: 100.0 * (r["top"][0] == self.reference[key]["top"][0]) for key, r in records.items()}
        if metric == "log-loss":
            complete = all("loss" in record for record in records.values())
            return {key: record["loss"] for key, record in records.items()} if complete else None
        count = {"top-1": 1, "top-5": 5}[metric]
        return {key: 100.0 * (self.targets[key] in record["top"][:count]) for key, record in records.items()}


def _prepare(preprocess: Preprocess, item: Item, image: Image.Image, original: Image.Image | None) -> Tensor:
    return preprocess(image)


def _stack_by_shape(tensors: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the indices of tensors of equal shape, and these tensors stacked."""
    groups: dict[tuple, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tuple(tensor.shape), []).append(index)
    for indices in groups.values():
        yield indices, torch.stack([tensors[index] for index in indices])
