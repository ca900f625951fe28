"""Every curve of a data set against every other: Bjøntegaard deltas, with intervals where scores are means over
images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ugicm.evaluation.bd_rate import Delta, bd_rate, bd_rate_interval, bd_score
from ugicm.evaluation.tasks.base import Evaluator
from ugicm.report.curves import Curve, Dataset


def comparable(value: float | None, metric: str, falling: bool = False) -> float | None:
    """A score on the scale on which it is compared: MS-SSIM in dB, -10 log10(1 - x), and higher is better."""
    if value is None:
        return None
    if metric.startswith("ms-ssim"):
        return -10 * math.log10(1 - value) if value < 1 else None
    return -value if falling else value


def compare(dataset: Dataset, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """``{metric, reference, test, rate, score}`` for every headline metric and ordered pair of curves."""
    rows = []
    for evaluator in dataset.evaluators:
        for metric in evaluator.headline:
            title, method = evaluator.title(metric), "isotonic" if evaluator.noisy else "pchip"
            if all(point.scores[title] is None for curve in curves for point in curve.points):
                continue
            arrays = {curve.name: _points(curve, title, metric, metric in evaluator.falling) for curve in curves}
            images = {curve.name: _per_image(dataset, curve, evaluator, metric) for curve in curves}
            for reference in curves:
                for test in curves:
                    if reference is test:
                        continue
                    a, b = arrays[reference.name], arrays[test.name]
                    if not len(a[0]) or not len(b[0]):
                        rate = score = Delta(None, note="not measured")
                    else:
                        rate, score = bd_rate(*a, *b, method), bd_score(*a, *b, method)
                        whole = images[reference.name], images[test.name]
                        if method == "isotonic" and all(whole):
                            rate = bd_rate_interval(*whole[0], *whole[1], method)
                    rows.append(
                        {
                            "metric": title,
                            "reference": reference.name,
                            "test": test.name,
                            "rate": asdict(rate),
                            "score": asdict(score),
                        }
                    )
    return rows


def _points(curve: Curve, title: str, metric: str, falling: bool) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(p.bpp, comparable(p.scores.get(title), metric, falling)) for p in curve.points]
    pairs = [pair for pair in pairs if pair[1] is not None]
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def _per_image(
    dataset: Dataset, curve: Curve, evaluator: Evaluator, metric: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rates and scores [points, images]; None where a score is no mean over images."""
    rates, scores = [], []
    for point in curve.points:
        values = evaluator.contributions(metric, point.records[evaluator.name])
        if values is None:
            return None
        scores.append([values[item.key] for item in dataset.items])
        sizes = (dataset.sizes[item.key] for item in dataset.items)
        rates.append([point.bits[i.key] / (w * h) for i, (w, h) in zip(dataset.items, sizes, strict=True)])
    return np.array(rates), np.array(scores)
