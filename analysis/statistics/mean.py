"""The mean of a quantity that has no bounds, over clustered rows."""

from __future__ import annotations

import numpy as np
from scipy import stats

from analysis.statistics.bootstrap import RESAMPLES, expanded_level, few_groups, group_counts
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
    draws = np.concatenate(
        [
            (counts @ sums) / (counts @ sizes)
            for counts in group_counts(units, resamples=resamples, seed=seed, at_once=max(1, (1 << 22) // units))
        ]
    )
    tail = (1 - expanded_level(level, units)) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    error = np.sqrt(units / (units - 1) * np.sum((sums - value * sizes) ** 2)) / sizes.sum()
    half = float(stats.t.isf((1 - level) / 2, units - 1) * error)
    return Interval(
        value=value,
        low=min(float(low), value - half),
        high=max(float(high), value + half),
        level=level,
        method="cluster bootstrap",
        units=units,
        noun=noun,
        caveat=few_groups(units, noun),
    )
