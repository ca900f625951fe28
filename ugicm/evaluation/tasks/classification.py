"""Classification: top-1, top-5, log-loss, and agreement with the verdict on the original image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PIL import Image
from torch import Tensor

from ugicm.evaluation.results import mean
from ugicm.evaluation.tasks.base import Evaluator, Item, by_shape
from ugicm.evaluation.tasks.classifiers import Judge, Preprocess


class ClassificationEvaluator(Evaluator):
    """A judge's verdicts. A record holds the five most likely classes, likeliest first, and the negative logarithm of
    the true class's probability (nats). Few images tell two codecs apart by it that top-1 does not.

    Attributes:
        reference: verdicts on the originals by image key (as ``records``), for agreement; None where there are none.
    """

    metrics = ("top-1", "top-5", "agreement", "log-loss")
    headline = ("top-1", "top-5", "agreement")
    falling = ("log-loss",)

    def __init__(self, judge: Judge, targets: dict[str, int]):
        super().__init__()
        self.judge, self.name, self.identity = judge, judge.name, judge.identity
        self.targets = targets
        self.reference: dict[str, dict] | None = None
        self.prepare = partial(_prepare, judge.preprocess)

    def process(self, items: Sequence[Item], prepared: Sequence[Tensor]) -> None:
        for indices, images in by_shape(prepared):
            scores = self.judge.scores(images)
            best = scores.topk(min(5, self.judge.classes), dim=1).indices.tolist()
            losses = -scores.double().log_softmax(dim=1)
            for index, classes, loss in zip(indices, best, losses, strict=True):
                key = items[index].key
                self.records[key] = {"top": classes}
                if key in self.targets:
                    self.records[key]["loss"] = loss[self.targets[key]].item()

    def summarize(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Percent of images whose class is the first verdict (top-1), is among five (top-5), and whose
        first verdict is that on the original (agreement; None without verdicts on the originals); mean log-loss."""
        values = {metric: self.contributions(metric, records) for metric in self.metrics}
        return {metric: mean(v.values()) if v else None for metric, v in values.items()}

    def contributions(self, metric: str, records: dict[str, dict]) -> dict[str, float] | None:
        if metric == "agreement":
            if self.reference is None:
                return None
            return {k: 100.0 * (r["top"][0] == self.reference[k]["top"][0]) for k, r in records.items()}
        if metric == "log-loss":
            return {k: r["loss"] for k, r in records.items()} if all("loss" in r for r in records.values()) else None
        count = {"top-1": 1, "top-5": 5}[metric]
        return {k: 100.0 * (self.targets[k] in r["top"][:count]) for k, r in records.items()}

    def describe(self) -> dict:
        return {
            **super().describe(),
            "preprocessing": str(self.judge.preprocess),
            "classes": self.judge.classes,
        }


def _prepare(preprocess: Preprocess, item: Item, image: Image.Image, original: Image.Image | None) -> Tensor:
    return preprocess(image)
