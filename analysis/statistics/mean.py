"""The mean of a quantity that has no bounds, over clustered rows."""

from __future__ import annotations

import numpy as np
from scipy import stats

from analysis.statistics.bootstrap import RESAMPLES, drawn_means, few_groups, variance_between
from analysis.statistics.interval import Interval
from store.errors import InputError


def mean_interval(
    values: np.ndarray,
    groups: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> Interval:
    """Mean over rows, e.g. of a paired difference, with an interval that respects groups.

    values: float [n], of any sign and size; groups: int or string [n]. The wider of the cluster bootstrap's expanded
    percentile interval (Hesterberg, The American Statistician 69 (2015) 371) and of the t interval with the linearised
    variance between groups (Cochran, Sampling Techniques (1977), 6.4). For shares, which have bounds, see
    `bootstrap_mean`. Raises InputError for values that are not finite, and with fewer than two groups, over which
    nothing can vary.
    """
    values = np.asarray(values, float)
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    units = len(names)
    if units < 2:
        raise InputError(f"the interval of a mean needs two independent {noun} at least: there are {units}")
    if not np.isfinite(values).all():
        raise InputError("a mean of numbers that are not all finite has no interval: leave those rows out")
    sums, sizes = np.bincount(codes, values), np.bincount(codes)
    value = float(values.mean())
    low, high = drawn_means(sums, sizes, level=level, resamples=resamples, seed=seed)
    half = float(stats.t.isf((1 - level) / 2, units - 1)) * variance_between(value, sums, sizes) ** 0.5
    return Interval(
        value=value,
        low=min(low, value - half),
        high=max(high, value + half),
        level=level,
        method="cluster bootstrap",
        units=units,
        noun=noun,
        caveat=few_groups(units, noun),
    )
