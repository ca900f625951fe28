"""Confidence intervals of means over images, by resampling the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 10  # images below which there is no interval


def mean_interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the mean of one value per image, or None for fewer than ten values.

    For differences of two scores of the same images, it is the paired interval.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < FEWEST:
        return None
    chosen = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)
