"""Comparison of every curve of a dataset with every other by Bjøntegaard deltas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from ugicm.evaluation.bd_rate import Delta, Method, bd_rate, bd_rate_interval, bd_score

if TYPE_CHECKING:
    from ugicm.evaluation.tasks.base import Evaluator
    from ugicm.report.curves import Curve
    from ugicm.report.datasets import Dataset


@dataclass(frozen=True)
class Metric:
    """A score that the report shows; ``name`` is one of its evaluator's headline metrics."""

    evaluator: Evaluator
    name: str

    @property
    def title(self) -> str:
        return self.evaluator.title(self.name)

    @property
    def method(self) -> Method:
        return "isotonic" if self.evaluator.noisy else "pchip"

    @property
    def lower_is_better(self) -> bool:
        """Whether lower scores are better."""
        return self.name in self.evaluator.lower_is_better


def headline_metrics(dataset: Dataset, curves: Sequence[Curve]) -> list[Metric]:
    """Return the metrics that at least one point has: small images have no MS-SSIM, for example."""
    metrics = [Metric(evaluator, name) for evaluator in dataset.evaluators for name in evaluator.headline]
    points = [point for curve in curves for point in curve.points]
    return [metric for metric in metrics if any(point.scores[metric.title] is not None for point in points)]


def comparable(value: float | None, metric: str, lower_is_better: bool = False) -> float | None:
    """Return a score on the scale of comparisons, higher is better: MS-SSIM as -10 log10(1 - x), at most 100 dB."""
    if value is None:
        return None
    if metric.startswith("ms-ssim"):
        return -10 * math.log10(max(1 - value, 1e-10))
    return -value if lower_is_better else value


def compare(dataset: Dataset, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return ``{metric, reference, test, rate, score}`` for every headline metric and ordered pair of curves."""
    rows = []
    for metric in headline_metrics(dataset, curves):
        points = {curve.name: ([p.bpp for p in curve.points], [p.scores[metric.title] for p in curve.points])
                  for curve in curves}  # fmt: skip
        scores = {curve.name: image_scores(dataset, curve, metric) for curve in curves}
        images = None
        if all(values is not None for values in scores.values()):
            # The same images in all curves, and in rates and scores.
            defined = ~np.isnan(np.concatenate([*scores.values()])).any(0)
            images = {curve.name: (image_rates(dataset, curve)[:, defined], scores[curve.name][:, defined])
                      for curve in curves}  # fmt: skip
            if not defined.any():
                points = dict.fromkeys(points, ((), ()))
            elif not defined.all():
                points = {name: (rates.mean(1), values.mean(1)) for name, (rates, values) in images.items()}
        for reference, test in permutations(points, 2):
            a, b = (_comparable_points(metric, *points[name]) for name in (reference, test))
            if not len(a[0]) or not len(b[0]):
                rate = score = Delta(None, note="not measured")
            else:
                rate, score = bd_rate(*a, *b, metric.method), bd_score(*a, *b, metric.method)
                if metric.method == "isotonic" and images:
                    rate = bd_rate_interval(*images[reference], *images[test], metric.method)
            rows.append({"metric": metric.title, "reference": reference, "test": test, "rate": asdict(rate),
                         "score": asdict(score)})  # fmt: skip
    return rows


def _comparable_points(
    metric: Metric, rates: Sequence[float], scores: Sequence[float | None]
) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(rate, comparable(score, metric.name, metric.lower_is_better))
             for rate, score in zip(rates, scores, strict=True) if score is not None]  # fmt: skip
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def image_rates(dataset: Dataset, curve: Curve) -> np.ndarray:
    """Return bits per pixel [points, images]."""
    return np.array([[point.rates[item.key] for item in dataset.items] for point in curve.points])


def image_scores(dataset: Dataset, curve: Curve, metric: Metric) -> np.ndarray | None:
    """Return scores [points, images], NaN where there is none; None if a point's score is not a mean over images."""
    rows = [metric.evaluator.per_image_scores(metric.name, p.records[metric.evaluator.name]) for p in curve.points]
    if any(row is None for row in rows):
        return None
    return np.array([[row.get(item.key, math.nan) for item in dataset.items] for row in rows])
