"""Thresholds with a false-positive rate that holds for new groups, whatever the scores' distribution."""

from __future__ import annotations

import math

import numpy as np

from store.errors import InputError


def groups_needed(fpr: float) -> int:
    """Control groups without which a threshold for `fpr` would be finer than one group: 1 / fpr."""
    return math.ceil(round(1 / fpr, 9))


def check_split(groups: np.ndarray, first: np.ndarray, *, said: str) -> None:
    """Raises InputError, beginning with `said`, where a group has rows both in `first`, bool [n], and outside."""
    if np.intersect1d(groups[first], groups[~first]).size:
        raise InputError(f"{said}: split by whole groups")


def conformal_threshold(scores: np.ndarray, groups: np.ndarray, *, fpr: float) -> float:
    """Smallest threshold t such that a row of a new control group scores above t with probability <= fpr.

    scores: float [n], of control rows; groups: int or string [n]. Each of the K groups weighs 1/(K + 1)
    however many rows it has, and the new group weighs the rest: hierarchical conformal prediction, Lee,
    Barber and Willett, arXiv 2306.06342, section 3; with one row per group it is split conformal prediction
    (Vovk et al. 2005; Papadopoulos et al. 2002). The level is marginal over calibration sets, for
    exchangeable groups and a row picked at random within its group.

    Raises InputError where fpr is not within (0, 1), or there are fewer than 1/fpr groups: the threshold
    would be finer than the controls can show (see `groups_needed`).
    """
    if not 0 < fpr < 1:
        raise InputError(f"a false-positive rate of {fpr} is not between 0 and 1")
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < groups_needed(fpr):
        raise InputError(
            f"a threshold at {100 * fpr:g} % false positives needs {groups_needed(fpr)} control groups, "
            f"there are {len(names)}"
        )
    weights = 1 / ((len(names) + 1) * np.bincount(codes)[codes])
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    descending = np.asarray(scores, float)[order]
    # flagged[i]: weight of all rows that score at least descending[i], had the new group scored above all
    flagged = 1 / (len(names) + 1) + np.cumsum(weights[order])
    last_of_tie = np.r_[descending[1:] != descending[:-1], True]
    exceeding = flagged[last_of_tie] > fpr + 1e-12
    return float(descending[last_of_tie][np.argmax(exceeding)])
