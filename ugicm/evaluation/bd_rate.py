"""Bjøntegaard deltas: the mean difference in rate at equal score, and in score at equal rate, between two curves.

Curves are interpolated by one of two methods:

``pchip``
    for PSNR, MS-SSIM, LPIPS: monotone cubic interpolation (Fritsch & Carlson, 1980) of log rate over score, as in the
    later Bjøntegaard documents (VCEG-AI11), with pchip in place of one cubic.
``isotonic``
    for accuracy and AP, which are noisy: the scores are first made non-decreasing in rate by least squares
    (pool adjacent violators), then joined by straight lines in log rate. The inverse of such a curve is
    undefined at single scores, which do not change an integral.

Nothing is extrapolated: a delta is the mean over the scores (or rates) that both curves reach. This interval is part
of the result, and curves whose intervals do not overlap have no delta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ugicm.extras import require_packages

Method = Literal["pchip", "isotonic"]
FEW = 10  # images, below which intervals are marked: resampling makes them too narrow
NARROW = 0.25  # share of both ranges below which an overlap is marked


@dataclass(frozen=True)
class Delta:
    """A Bjøntegaard delta.

    Attributes:
        value: percent of rate (``bd_rate``; negative: the test curve needs less) or score units (``bd_score``);
            None if undefined, with the reason in ``note``.
        low, high: the interval over which the mean is taken: scores for ``bd_rate``, rates for ``bd_score``.
        share: length of that interval relative to the union of both curves' ranges (log rate for ``bd_score``).
        interval: 95 % confidence interval over images, if it was computed.
        note: remarks on the value; may be empty.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    share: float = 0.0
    interval: tuple[float, float] | None = None
    note: str = ""


def bd_rate(rate_a, score_a, rate_b, score_b, method: Method = "pchip") -> Delta:
    """Return the mean difference in rate, in percent, of curve b (test) from curve a (reference) at equal score.

    ``rate_*`` (positive) and ``score_*`` (higher is better) are sequences of equal length, at least two
    points each, in any order.

    Raises ValueError if lengths differ, values are not finite or rates are not positive.
    """
    notes, inverses = [], []
    for name, rate, score in (("reference", rate_a, score_a), ("test", rate_b, score_b)):
        log_rate, score = _sorted(rate, score)
        if len(log_rate) < 2:
            return Delta(None, note=f"the {name} curve has one point")
        if method == "isotonic":
            require_packages("eval", "the BD-rate of a noisy score", "scipy")
            from scipy.optimize import isotonic_regression

            pooled = isotonic_regression(score).x
            if np.any(pooled != score):
                notes.append(f"{name} curve made monotone")
            score = pooled
        elif np.any(np.diff(score) <= 0) or np.any(np.diff(log_rate) <= 0):
            return Delta(None, note=f"the {name} curve does not rise with rate")
        inverses.append((score, log_rate))
    delta = _mean_difference(*inverses, method, notes)
    return delta if delta.value is None else replace(delta, value=float(100 * np.expm1(delta.value)))


def bd_score(rate_a, score_a, rate_b, score_b, method: Method = "pchip") -> Delta:
    """Return the mean difference in score of curve b (test) from curve a (reference) at equal rate.

    Arguments and errors as for :func:`bd_rate`; scores need not rise with rate. ``isotonic`` joins the
    points by straight lines in log rate.
    """
    curves = []
    for name, rate, score in (("reference", rate_a, score_a), ("test", rate_b, score_b)):
        log_rate, score = _sorted(rate, score)
        if len(log_rate) < 2:
            return Delta(None, note=f"the {name} curve has one point")
        if np.any(np.diff(log_rate) <= 0):
            return Delta(None, note=f"the {name} curve has two points of one rate")
        curves.append((log_rate, score))
    delta = _mean_difference(*curves, method, [])
    if delta.value is None:
        return delta
    return replace(delta, low=float(np.exp(delta.low)), high=float(np.exp(delta.high)))


def bd_rate_interval(
    rate_a, score_a, rate_b, score_b, method: Method = "isotonic", resamples: int = 300, seed: int = 0
) -> Delta:
    """Return :func:`bd_rate` of the means over images, with a 95 % bootstrap interval over images.

    All arguments are arrays [points, images]. Both curves have the same images in the same order, and are resampled
    together. The interval covers the choice of images, not the choice of the network that scores them.
    """
    arrays = [np.asarray(v, dtype=float) for v in (rate_a, score_a, rate_b, score_b)]
    count = arrays[0].shape[1]
    if any(v.shape[1] != count for v in arrays):
        raise ValueError("both curves must be measured on the same images")

    def over(images) -> Delta:
        return bd_rate(*(v[:, images].mean(1) for v in arrays), method)

    delta = over(slice(None))
    if delta.value is None or count < 2:
        return delta
    if count < FEW:
        delta = replace(delta, note="; ".join(filter(None, (delta.note, f"rough interval: {count} images"))))
    generator = np.random.default_rng(seed)
    values = [over(generator.integers(0, count, count)).value for _ in range(resamples)]
    defined = [v for v in values if v is not None]
    if len(defined) < 0.9 * resamples:  # the resamples whose curves overlap are a biased sample
        return delta
    low, high = np.percentile(defined, [2.5, 97.5])
    return replace(delta, interval=(float(low), float(high)))


def _mean_difference(a, b, method: Method, notes: list[str]) -> Delta:
    """Return the mean of b - a over the x that both curves (x, y) cover."""
    low, high = max(a[0][0], b[0][0]), min(a[0][-1], b[0][-1])
    if not high > low:
        return Delta(None, note="no overlap")
    share = (high - low) / (max(a[0][-1], b[0][-1]) - min(a[0][0], b[0][0]))
    if share < NARROW:
        notes = [*notes, "narrow overlap"]
    difference = (_integral(*b, low, high, method) - _integral(*a, low, high, method)) / (high - low)
    return Delta(float(difference), float(low), float(high), float(share), note="; ".join(notes))


def _integral(x: np.ndarray, y: np.ndarray, low: float, high: float, method: Method) -> float:
    if method == "pchip":
        require_packages("eval", "a Bjøntegaard delta", "scipy")
        from scipy.interpolate import PchipInterpolator

        return float(PchipInterpolator(x, y).integrate(low, high))
    start, stop = np.clip(x[:-1], low, high), np.clip(x[1:], low, high)
    dx = np.diff(x)
    slope = np.divide(np.diff(y), dx, out=np.zeros_like(dx), where=dx > 0)  # jumps (equal x) have no area
    return float(np.sum((stop - start) * (y[:-1] + slope * ((start + stop) / 2 - x[:-1]))))


def _sorted(rate, score) -> tuple[np.ndarray, np.ndarray]:
    """Return log rates in increasing order, and their scores."""
    rate, score = np.asarray(rate, dtype=float), np.asarray(score, dtype=float)
    if rate.ndim != 1 or rate.shape != score.shape or not len(rate):
        raise ValueError(f"a curve is two sequences of equal length, got shapes {rate.shape} and {score.shape}")
    if not (np.isfinite(rate).all() and np.isfinite(score).all() and (rate > 0).all()):
        raise ValueError("a curve needs finite scores and finite positive rates")
    order = np.argsort(rate, kind="stable")
    return np.log(rate[order]), score[order]
