"""Intervals for proportions of independent rows; for clustered ones see bootstrap.py."""

from __future__ import annotations

import numpy as np
from scipy import stats


def clopper_pearson(successes: float, trials: float, *, level: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval from quantiles of the beta distribution.

    Clopper and Pearson, Biometrika 26 (1934) 404. Real-valued counts are allowed, as effective sample sizes
    need them. Never below its level; without trials it is [0, 1].
    """
    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes >= trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def wilson(successes: float, trials: float, *, level: float = 0.95) -> tuple[float, float]:
    """Score interval, at its level on average over p. Wilson, J. Am. Stat. Assoc. 22 (1927) 209."""
    if trials <= 0:
        return 0.0, 1.0
    z = float(stats.norm.isf((1 - level) / 2))
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes <= 0 else max(0.0, float(centre - half))
    high = 1.0 if successes >= trials else min(1.0, float(centre + half))
    return low, high
