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
    """Return a score on the scale of comparisons, where higher is better: MS-SSIM as -10 log10(1 - x) dB."""
    if value is None:
        return None
    if metric.startswith("ms-ssim"):
        return -10 * math.log10(1 - value) if value < 1 else None
    return -value if lower_is_better else value


def compare(dataset: Dataset, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return ``{metric, reference, test, rate, score}`` for every headline metric and ordered pair of curves."""
    rows = []
    for metric in headline_metrics(dataset, curves):
        points = {curve.name: _points(curve, metric) for curve in curves}
        images = {
            curve.name: None if (scores := image_scores(dataset, curve, metric)) is None
            else (image_rates(dataset, curve), scores)
            for curve in curves
        }  # fmt: skip
        for reference, test in permutations(points, 2):
            a, b = points[reference], points[test]
            if not len(a[0]) or not len(b[0]):
                rate = score = Delta(None, note="not measured")
            else:
                rate, score = bd_rate(*a, *b, metric.method), bd_score(*a, *b, metric.method)
                if metric.method == "isotonic" and images[reference] and images[test]:
                    rate = bd_rate_interval(*images[reference], *images[test], metric.method)
            rows.append({"metric": metric.title, "reference": reference, "test": test, "rate": asdict(rate),
                         "score": asdict(score)})  # fmt: skip
    return rows


def _points(curve: Curve, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(p.bpp, comparable(p.scores[metric.title], metric.name, metric.lower_is_better)) for p in curve.points]
    pairs = [pair for pair in pairs if pair[1] is not None]
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def image_rates(dataset: Dataset, curve: Curve) -> np.ndarray:
    """Return bits per pixel [points, images]."""
    return np.array([[point.rates[item.key] for item in dataset.items] for point in curve.points])


def image_scores(dataset: Dataset, curve: Curve, metric: Metric) -> np.ndarray | None:
    """Return scores [points, images]; None if a point's score is not a mean over images."""
    rows = [metric.evaluator.per_image_scores(metric.name, p.records[metric.evaluator.name]) for p in curve.points]
    if any(row is None for row in rows):
        return None
    return np.array([[row[item.key] for item in dataset.items] for row in rows])
