"""Two detectors on the same rows."""

from __future__ import annotations

import numpy as np

from analysis.statistics.bootstrap import RESAMPLES, disjoint_pairs, expanded_level, few_groups, resampled_aurocs
from analysis.statistics.interval import Interval
from analysis.statistics.ranking import Ranking


def auroc_gain(
    scores: np.ndarray,
    others: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    strata: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> Interval:
    """AUROC of `scores` less that of `others`, both on the same draws of groups.

    scores, others: float [n]; labels: bool [n]; groups, strata: [n] as in `bootstrap_auroc`. The expanded
    percentile interval of the paired differences (Hesterberg 2015). Two detectors are told apart where it
    excludes 0; that their single intervals overlap says little, as their errors go together.
    """
    labels = np.asarray(labels, bool)
    rankings = [Ranking(scores=np.asarray(s, float), labels=labels, strata=strata) for s in (scores, others)]
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    draws = resampled_aurocs(rankings, codes, len(names), resamples=resamples, seed=seed)
    tail = (1 - expanded_level(level, disjoint_pairs(labels, codes))) / 2
    low, high = np.quantile(draws[0] - draws[1], [tail, 1 - tail])
    smaller = min(len(np.unique(codes[labels])), len(np.unique(codes[~labels])))
    return Interval(
        value=rankings[0].auroc - rankings[1].auroc,
        low=float(low),
        high=float(high),
        level=level,
        method="paired cluster bootstrap",
        units=len(names),
        noun=noun,
        caveat=few_groups(smaller, f"{noun} of the rarer class"),
    )
