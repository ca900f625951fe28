"""Classification: top-1, top-5, and agreement with the verdict on the original picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PIL import Image
from torch import Tensor

from ugicm.evaluation.scorers.base import Evaluator, Item, by_shape
from ugicm.evaluation.scorers.judges import Judge, Preprocess


class ClassificationEvaluator(Evaluator):
    """A judge's verdicts. A record holds the five most likely classes, likeliest first.

    ``reference``: verdicts on the originals by picture key (as ``records``), for agreement; may be set later.
    """

    metrics = ("top-1", "top-5", "agreement")

    def __init__(self, judge: Judge, targets: dict[str, int], reference: dict[str, dict] | None = None):
        super().__init__()
        self.judge, self.name, self.identity = judge, judge.name, judge.identity
        self.targets, self.reference = targets, reference
        self.prepare = partial(_prepare, judge.preprocess)

    def process(self, items: Sequence[Item], prepared: Sequence[Tensor]) -> None:
        for indices, pictures in by_shape(prepared):
            best = self.judge.scores(pictures).topk(min(5, self.judge.classes), dim=1).indices.tolist()
            for index, classes in zip(indices, best, strict=True):
                self.records[items[index].key] = {"top": classes}

    def summarise(self, records: dict[str, dict]) -> dict[str, float | None]:
        """Percent of pictures whose class is the first verdict (top-1), is among five (top-5), and whose
        first verdict is that on the original (agreement; None without verdicts on the originals)."""
        count = len(records)
        if not count:
            return dict.fromkeys(self.metrics)
        first = sum(r["top"][0] == self.targets[k] for k, r in records.items())
        five = sum(self.targets[k] in r["top"] for k, r in records.items())
        same = None
        if self.reference is not None:
            same = 100 * sum(r["top"][0] == self.reference[k]["top"][0] for k, r in records.items()) / count
        return {"top-1": 100 * first / count, "top-5": 100 * five / count, "agreement": same}

    def describe(self) -> dict:
        return {
            **super().describe(),
            "preprocessing": str(self.judge.preprocess),
            "classes": self.judge.classes,
        }


def _prepare(preprocess: Preprocess, item: Item, image: Image.Image, original: Image.Image | None) -> Tensor:
    return preprocess(image)
