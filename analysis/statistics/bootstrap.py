"""Cluster bootstrap: whole groups are drawn with replacement, as rows of one group are not independent.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), 8.6; Davison and Hinkley (1997), 3.8. The plain
percentile interval is too short where groups are few and where the statistic is near a border of [0, 1], so
each interval here is the wider of two that are honest there: see `bootstrap_auroc` and `bootstrap_mean`. What
they cover is simulated in bench/simulate.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from analysis.statistics.interval import Interval
from analysis.statistics.proportion import clopper_pearson
from analysis.statistics.ranking import Ranking
from store.errors import InputError

RESAMPLES = 2000
FEW_GROUPS = 50  # below this many groups a class, coverage of 95 % is not reached reliably
_CELLS = 1 << 22  # weights held at once: resamples x rows


def group_counts(groups: int, *, resamples: int, seed: int, at_once: int | None = None) -> Iterator[np.ndarray]:
    """How often each group is drawn: int [b, groups] blocks of at most `at_once` of the `resamples` draws."""
    generator = np.random.default_rng(seed)
    step = at_once or resamples
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        yield generator.multinomial(groups, np.full(groups, 1 / groups), size=draws)


def expanded_level(level: float, units: int) -> float:
    """Two-sided level at which a bootstrap percentile interval of few units holds `level`.

    The bootstrap's spread is sqrt((n - 1) / n) too small and its tails are normal where t is right:
    Hesterberg, The American Statistician 69 (2015) 371, section 5.3.
    """
    if units < 2:
        return level
    tail = stats.norm.cdf(-np.sqrt(units / (units - 1)) * stats.t.isf((1 - level) / 2, units - 1))
    return float(1 - 2 * tail)


def disjoint_pairs(labels: np.ndarray, groups: np.ndarray) -> int:
    """How many (positive, negative) pairs of rows can be formed that use every group once at most.

    labels: bool [n]; groups: int [n]. Such pairs are independent, so their number is what an AUROC rests on.
    """
    with_positive = set(np.unique(groups[labels]).tolist())
    with_negative = set(np.unique(groups[~labels]).tolist())
    return min(len(with_positive), len(with_negative), len(with_positive | with_negative) // 2)


def bootstrap_auroc(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    strata: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> Interval:
    """AUROC with its interval under resampling of whole groups.

    scores: float [n]; labels: bool [n]; groups: int or string [n]; strata: int [n], see `Ranking`. The
    interval is the wider of the expanded percentile interval and of the t interval on the logit scale with
    the bootstrap's standard error. With fewer than one expected error over the independent pairs of rows
    (`disjoint_pairs`), no resampling knows how rare errors are: the interval is widened to Clopper-Pearson's
    over those pairs, which at an AUROC of 0 or 1 is the exact bound (a U-statistic varies no more than the
    mean over independent pairs: Hoeffding 1948). Raises InputError on non-finite scores or a single class.
    """
    labels = np.asarray(labels, bool)
    ranking = Ranking(scores=np.asarray(scores, float), labels=labels, strata=strata)
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    pairs = disjoint_pairs(labels, codes)
    value = ranking.auroc
    low, high = value, value
    if 0 < value < 1 and len(names) > 1:
        draws = resampled_aurocs([ranking], codes, len(names), resamples=resamples, seed=seed)[0]
        tail = (1 - expanded_level(level, pairs)) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        half = stats.t.isf((1 - level) / 2, max(pairs - 1, 1)) * draws.std(ddof=1) / (value * (1 - value))
        low, high = min(low, expit(logit(value) - half)), max(high, expit(logit(value) + half))
    if min(value, 1 - value) * pairs < 1:
        exact = clopper_pearson(value * pairs, pairs, level=level)
        low, high = min(low, exact[0]), max(high, exact[1])
    smaller = min(len(np.unique(codes[labels])), len(np.unique(codes[~labels])))
    return Interval(
        value=value,
        low=float(low),
        high=float(high),
        level=level,
        method="cluster bootstrap",
        units=len(names),
        noun=noun,
        caveat=few_groups(smaller, f"{noun} of the rarer class"),
    )


def resampled_aurocs(
    rankings: list[Ranking], codes: np.ndarray, groups: int, *, resamples: int, seed: int
) -> np.ndarray:
    """AUROC of each ranking under the same draws of groups: float64 [rankings, usable draws].

    codes: int [n], the group of each row. Draws that leave a ranking without a pair of both classes are
    dropped.
    """
    at_once = max(1, _CELLS // len(codes))
    kept: list[np.ndarray] = []
    for counts in group_counts(groups, resamples=resamples, seed=seed, at_once=at_once):
        weights = counts[:, codes].astype(np.float64)
        both = np.array([ranking.pairs(weights) for ranking in rankings])  # [rankings, 2, b]
        usable = (both[:, 1] > 0).all(axis=0)
        kept.append(both[:, 0, usable] / both[:, 1, usable])
    return np.concatenate(kept, axis=1)


def bootstrap_mean(
    values: np.ndarray,
    groups: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> Interval:
    """Share of rows, e.g. of rows flagged, with an interval that respects groups.

    values: float in [0, 1] [n], one per row; groups: int or string [n]. One row per group and values of 0 or
    1: Clopper and Pearson's exact interval. Otherwise the wider of the cluster bootstrap's expanded
    percentile interval and of Korn and Graubard's (Survey Methodology 24 (1998) 193): Clopper-Pearson with
    the effective number of rows n / deff. At 0 or 1 there is no variance to estimate deff from, and the exact
    bound over groups is given. Raises InputError without rows.
    """
    values = np.asarray(values, float)
    if len(values) == 0:
        raise InputError("a rate needs at least one row: none is left")
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    value, units = float(values.mean()), len(names)
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    if value in (0.0, 1.0) or (binary and units == len(values)):
        low, high = clopper_pearson(value * units, units, level=level)
        return Interval(value=value, low=low, high=high, level=level, method="Clopper-Pearson", units=units, noun=noun)
    sums, sizes = np.bincount(codes, values), np.bincount(codes)
    low, high = clopper_pearson(*_effective(value, sums, sizes, level=level), level=level)
    if units > 1:
        drawn = drawn_means(sums, sizes, level=level, resamples=resamples, seed=seed)
        low, high = min(low, drawn[0]), max(high, drawn[1])
    return Interval(
        value=value,
        low=low,
        high=high,
        level=level,
        method="cluster bootstrap",
        units=units,
        noun=noun,
        caveat=few_groups(units, noun),
    )


def drawn_means(sums: np.ndarray, sizes: np.ndarray, *, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """The cluster bootstrap's expanded percentile interval of a mean over rows.

    sums, sizes: of the rows of each group, [g], two groups at least. Hesterberg, The American Statistician 69 (2015)
    371.
    """
    units = len(sums)
    draws = np.concatenate(
        [
            (counts @ sums) / (counts @ sizes)
            for counts in group_counts(units, resamples=resamples, seed=seed, at_once=max(1, _CELLS // units))
        ]
    )
    tail = (1 - expanded_level(level, units)) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def variance_between(value: float, sums: np.ndarray, sizes: np.ndarray) -> float:
    """Linearised variance between groups of a mean over rows (Cochran, Sampling Techniques (1977), 6.4)."""
    units = len(sums)
    return float(units / (units - 1) * float(np.sum((sums - value * sizes) ** 2)) / float(sizes.sum()) ** 2)


def _effective(value: float, sums: np.ndarray, sizes: np.ndarray, *, level: float) -> tuple[float, float]:
    """Korn and Graubard's effective successes and trials, from the linearised variance between groups."""
    rows, units = float(sizes.sum()), len(sizes)
    if units < 2:
        return value, 1.0
    variance = variance_between(value, sums, sizes)
    trials = value * (1 - value) / variance if variance > 0 else float(units)
    # the degrees of freedom of the variance are those of groups, not of rows
    tail = (1 - level) / 2
    trials *= (stats.t.isf(tail, max(rows - 1, 1)) / stats.t.isf(tail, units - 1)) ** 2
    trials = min(trials, rows)
    return value * trials, trials


def few_groups(groups: int, noun: str = "groups") -> str | None:
    """The caveat of an interval over fewer groups than the bootstrap needs, or None."""
    return f"unreliable: {groups} {noun}, fewer than {FEW_GROUPS}" if groups < FEW_GROUPS else None
