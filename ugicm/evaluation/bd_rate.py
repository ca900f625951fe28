"""Bjøntegaard deltas: how much rate one curve saves over another at equal score, and how much score it gains
at equal rate.

Two ways to turn points into curves:

``pchip``
    for PSNR, MS-SSIM, LPIPS: monotone cubic interpolation (Fritsch & Carlson, 1980) between measured points,
    of log rate over score. As in the later Bjøntegaard documents (VCEG-AI11) with pchip in place of one
    cubic.
``isotonic``
    for accuracy and AP, which are noisy: the scores are first made non-decreasing in rate by least squares
    (pool adjacent violators), then joined by straight lines in log rate. The inverse of such a curve is
    defined but for single scores, which do not matter to an integral.

Nothing is extrapolated: a delta is taken over the scores (or rates) that both curves reach, that range is
part of the answer, and curves that share none have no delta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

Method = Literal["pchip", "isotonic"]
NARROW = 0.25  # overlaps below this share of the two ranges together are marked


@dataclass(frozen=True)
class Delta:
    """A Bjøntegaard delta.

    Attributes:
        value: percent of rate (``bd_rate``; negative: the test curve needs less) or score units
            (``bd_score``); None where it is not defined, and then ``note`` says why.
        low, high: the interval over which it was taken: scores for ``bd_rate``, rates for ``bd_score``.
        share: length of that interval over that of both curves' ranges together (log rate for ``bd_score``).
        interval: 95 % confidence interval over images, where it was computed.
        note: what a reader should know about the value; may be empty.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    share: float = 0.0
    interval: tuple[float, float] | None = None
    note: str = ""


def bd_rate(rate_a, score_a, rate_b, score_b, method: Method = "pchip") -> Delta:
    """Mean difference in rate, in percent, of curve b (the test) against curve a (the reference) at equal
    score.

    ``rate_*`` (positive) and ``score_*`` (higher is better) are sequences of equal length, at least two
    points each, in any order.

    Raises ValueError for sequences that are not curves: lengths differ, values not finite, rates not
    positive.
    """
    a, b = _sorted(rate_a, score_a), _sorted(rate_b, score_b)
    notes = []
    inverses = []
    for name, (log_rate, score) in (("reference", a), ("test", b)):
        if len(log_rate) < 2:
            return Delta(None, note=f"the {name} curve has one point")
        if method == "isotonic":
            pooled = isotonic_regression(score).x
            if np.any(pooled != score):
                notes.append(f"{name} curve made monotone")
            inverses.append(_Lines(pooled, log_rate))
        elif np.any(np.diff(score) <= 0) or np.any(np.diff(log_rate) <= 0):
            return Delta(None, note=f"the {name} curve does not rise with rate")
        else:
            inverses.append(_Pchip(score, log_rate))
    return _compare(*inverses, scale=lambda d: 100 * np.expm1(d), show=float, notes=notes)


def bd_score(rate_a, score_a, rate_b, score_b, method: Method = "pchip") -> Delta:
    """Mean difference in score of curve b (the test) against curve a (the reference) at equal rate.

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
        curves.append((_Lines if method == "isotonic" else _Pchip)(log_rate, score))
    return _compare(*curves, scale=float, show=lambda x: float(np.exp(x)), notes=[])


def bd_rate_interval(
    rate_a, score_a, rate_b, score_b, method: Method = "isotonic", resamples: int = 300, seed: int = 0
) -> Delta:
    """:func:`bd_rate` of the means over images, with a 95 % interval from resampling images (bootstrap).

    All arguments are arrays [points, images], the images the same and in the same order in both curves,
    so that what makes an image hard moves both. The interval speaks of the choice of images, not of the
    judge.
    """
    rate_a, score_a, rate_b, score_b = (np.asarray(v, dtype=float) for v in (rate_a, score_a, rate_b, score_b))
    count = rate_a.shape[1]
    if any(v.shape[1] != count for v in (score_a, rate_b, score_b)):
        raise ValueError("both curves must be measured on the same images")

    def over(pick) -> Delta:
        return bd_rate(*(v[:, pick].mean(1) for v in (rate_a, score_a, rate_b, score_b)), method)

    whole = over(slice(None))
    if whole.value is None or count < 10:
        return whole
    generator = np.random.default_rng(seed)
    values = [over(generator.integers(0, count, count)).value for _ in range(resamples)]
    found = [v for v in values if v is not None]
    if len(found) < 0.9 * resamples:  # curves that hardly overlap: the ones that do are no fair sample
        return whole
    low, high = np.percentile(found, [2.5, 97.5])
    return Delta(whole.value, whole.low, whole.high, whole.share, (float(low), float(high)), whole.note)


class _Lines:
    """Points joined by straight lines; x non-decreasing, jumps (equal x) allowed."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = x, y

    def integral(self, low: float, high: float) -> float:
        total = 0.0
        for x0, x1, y0, y1 in zip(self.x[:-1], self.x[1:], self.y[:-1], self.y[1:], strict=True):
            start, stop = max(low, x0), min(high, x1)
            if stop > start:
                slope = (y1 - y0) / (x1 - x0)
                total += (stop - start) * (y0 + slope * ((start + stop) / 2 - x0))
        return total


class _Pchip:
    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x = x
        self.curve = PchipInterpolator(x, y, extrapolate=False)

    def integral(self, low: float, high: float) -> float:
        return float(self.curve.integrate(low, high))


def _compare(a, b, scale, show, notes: list[str]) -> Delta:
    low, high = max(a.x[0], b.x[0]), min(a.x[-1], b.x[-1])
    if not high > low:
        return Delta(None, note="no overlap")
    share = (high - low) / (max(a.x[-1], b.x[-1]) - min(a.x[0], b.x[0]))
    if share < NARROW:
        notes = [*notes, "narrow overlap"]
    mean = (b.integral(low, high) - a.integral(low, high)) / (high - low)
    return Delta(float(scale(mean)), show(low), show(high), float(share), note="; ".join(notes))


def _sorted(rate, score) -> tuple[np.ndarray, np.ndarray]:
    rate, score = np.asarray(rate, dtype=float), np.asarray(score, dtype=float)
    if rate.ndim != 1 or rate.shape != score.shape or not len(rate):
        raise ValueError(f"a curve is two sequences of equal length, got shapes {rate.shape} and {score.shape}")
    if not (np.isfinite(rate).all() and np.isfinite(score).all() and (rate > 0).all()):
        raise ValueError("a curve has finite scores and finite positive rates")
    order = np.argsort(rate, kind="stable")
    return np.log(rate[order]), score[order]
