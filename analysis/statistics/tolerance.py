"""Thresholds of which it can be said, of this very one, that its false-positive rate is small.

Split conformal prediction bounds the rate on average over calibrations: half of the monitors calibrated so have a
rate above the average. The rate beyond the k-th largest of n scores is distributed as Beta(k, n + 1 - k) over
calibrations, whatever the scores' distribution (Wilks, Ann. Math. Stat. 12 (1941) 91; for conformal prediction Vovk,
"Conditional validity of inductive conformal predictors", ACML 2012, proposition 2a): taking k small enough makes the
rate small with confidence.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from store.errors import InputError


def tolerance_groups_needed(fpr: float, *, confidence: float = 0.95) -> int:
    """Control groups without which no threshold is known to hold `fpr`: log(1 - confidence) / log(1 - fpr)."""
    return math.ceil(round(math.log(1 - confidence) / math.log1p(-fpr), 9))


def tolerance_threshold(scores: np.ndarray, groups: np.ndarray, *, fpr: float, confidence: float = 0.95) -> float:
    """Smallest score t of which P(a new control group has a row above t) <= fpr holds with `confidence`.

    scores: float [n], of control rows; groups: int or string [n]. A group counts by its largest score.
    Raises InputError where fpr is not within (0, 1), or there are fewer groups than `tolerance_groups_needed`.
    """
    if not 0 < fpr < 1:
        raise InputError(f"a false-positive rate of {fpr} is not between 0 and 1")
    largest = np.sort(group_maxima(scores, groups))[::-1]
    needed = tolerance_groups_needed(fpr, confidence=confidence)
    if len(largest) < needed:
        raise InputError(
            f"to know with {100 * confidence:g} % confidence that a threshold holds {100 * fpr:g} % false positives "
            f"takes {needed} control groups, there are {len(largest)}"
        )
    k = np.arange(1, len(largest) + 1)
    known = stats.beta.cdf(fpr, k, len(largest) + 1 - k) >= confidence
    return float(largest[np.flatnonzero(known)[-1]])


def group_maxima(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """float64 [K]: the largest score of each group, in the order of their names."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    largest = np.full(len(names), -np.inf)
    np.maximum.at(largest, codes, np.asarray(scores, np.float64))
    return largest
