"""How well scores rank positive rows above negative ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from analysis.statistics.interval import Interval
from analysis.statistics.proportion import clopper_pearson
from store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Rows sorted for counting concordant pairs, possibly within strata and with other weights each time.

    Scores of different strata (the folds of a cross-validation, each with its own fitted model) are on no
    common scale, so only pairs within a stratum are counted: the result is the average of the strata's AUROCs
    weighted by their numbers of pairs.

    scores: float [n]; labels: bool [n]; strata: int [n] or None for a single stratum. Ties count one half.
    Raises InputError where scores are not finite or no stratum holds both classes.
    """

    scores: np.ndarray
    labels: np.ndarray
    strata: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.labels):
            raise InputError(f"{len(self.scores)} scores but {len(self.labels)} labels: give one label a score")
        if not np.isfinite(self.scores).all():
            bad = int(np.count_nonzero(~np.isfinite(self.scores)))
            raise InputError(f"{bad} of {len(self.scores)} scores are NaN or infinite: look at the activations")
        if len(self.scores) == 0 or self.pairs(np.ones((1, len(self.scores))))[1][0] == 0:
            raise InputError("AUROC needs rows of both classes in one fold: the labels there have one class")

    @cached_property
    def order(self) -> np.ndarray:
        """int [n]: rows by stratum, then by score."""
        strata = np.zeros(len(self.scores), np.int64) if self.strata is None else self.strata
        return np.lexsort((self.scores, strata))

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts of the runs of tied scores in sorted order, and the index of each run's stratum."""
        scores = self.scores[self.order]
        strata = np.zeros(len(scores), np.int64) if self.strata is None else self.strata[self.order]
        new_stratum = np.r_[True, strata[1:] != strata[:-1]]
        new_run = new_stratum | np.r_[True, scores[1:] != scores[:-1]]
        starts = np.flatnonzero(new_run)
        return starts, np.cumsum(new_stratum)[starts] - 1

    def pairs(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Concordant and all pairs under row weights.

        weights: float [B, n]. Returns two float64 [B]: sums over (positive, negative) pairs of one stratum of
        the product of their weights, times 1, ½ or 0 in the first.
        """
        sorted_weights = weights[:, self.order]
        positive = self.labels[self.order].astype(bool)
        starts, stratum = self._segments
        ahead = np.add.reduceat(np.where(positive, sorted_weights, 0.0), starts, axis=1)
        behind = np.add.reduceat(np.where(positive, 0.0, sorted_weights), starts, axis=1)
        first = np.flatnonzero(np.r_[True, stratum[1:] != stratum[:-1]])
        below = np.cumsum(behind, axis=1) - behind
        below -= below[:, first][:, stratum]  # count the negatives of the own stratum only
        concordant = np.einsum("bi,bi->b", ahead, below + behind / 2)
        positives, negatives = (np.add.reduceat(part, first, axis=1) for part in (ahead, behind))
        return concordant, np.einsum("bi,bi->b", positives, negatives)

    @cached_property
    def auroc(self) -> float:
        concordant, every = self.pairs(np.ones((1, len(self.scores))))
        return float(concordant[0] / every[0])


def auroc(scores: np.ndarray, labels: np.ndarray, *, strata: np.ndarray | None = None) -> float:
    """Probability that a positive row scores above a negative one, ties counting one half; exact.

    scores: float [n]; labels: bool [n]; strata: int [n], pairs are counted within a stratum only (see
    `Ranking`). Mann and Whitney, Ann. Math. Stat. 18 (1947) 50. Raises InputError on non-finite scores or a
    single class.
    """
    return Ranking(scores=np.asarray(scores, float), labels=np.asarray(labels, bool), strata=strata).auroc


def placements(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each positive's share of negatives below it, float64 [n1], and each negative's of positives above it [n0]."""
    positive, negative = scores[labels], scores[~labels]
    ranks = stats.rankdata(np.r_[positive, negative])
    above_negatives = (ranks[: len(positive)] - stats.rankdata(positive)) / len(negative)
    below_positives = 1 - (ranks[len(positive) :] - stats.rankdata(negative)) / len(positive)
    return above_negatives, below_positives


def delong(scores: np.ndarray, labels: np.ndarray, *, level: float = 0.95) -> Interval:
    """AUROC with DeLong's interval; for independent rows only.

    scores: float [n]; labels: bool [n]. DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837, on the
    logit scale (Pepe 2003, 5.2.5), which stays within (0, 1). At 0 or 1 the variance is 0, and the exact
    bound over as many disjoint pairs as the smaller class has rows is given. Raises InputError on fewer than
    two rows of a class.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    value = auroc(scores, labels)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if min(positives, negatives) < 2:
        raise InputError("DeLong's interval needs two rows of each class at least")
    if value in (0.0, 1.0):
        low, high = clopper_pearson(value * min(positives, negatives), min(positives, negatives), level=level)
    else:
        of_positives, of_negatives = placements(scores, labels)
        deviation = np.sqrt(of_positives.var(ddof=1) / positives + of_negatives.var(ddof=1) / negatives)
        half = stats.norm.isf((1 - level) / 2) * deviation / (value * (1 - value))
        logit = np.log(value / (1 - value))
        low, high = 1 / (1 + np.exp(-(logit - half))), 1 / (1 + np.exp(-(logit + half)))
    return Interval(
        value=value, low=float(low), high=float(high), level=level, method="DeLong", units=len(scores), noun="rows"
    )


def column_aurocs(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of every column and its number of pairs, 0.5 where there are none: float64 [C], float64 [C].

    scores: float [n, C]; labels: bool [n, C]. From rank sums (Mann and Whitney 1947), ties counting one half.
    """
    ranks = stats.rankdata(scores, axis=0)
    positives = labels.sum(axis=0).astype(float)
    pairs = positives * (len(labels) - positives)
    sums = (ranks * labels).sum(axis=0) - positives * (positives + 1) / 2
    return np.where(pairs > 0, sums / np.maximum(pairs, 1), 0.5), pairs
