"""The ROC curve, its part at low false-positive rates, and average precision."""

from __future__ import annotations

import numpy as np

from store.errors import InputError


def roc_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rates, recalls and thresholds, each float64 [k], from the strictest threshold on.

    scores: float [n]; labels: bool [n]. A row is flagged where its score is at least the threshold; the first
    threshold is infinity. Raises InputError where there is one class only.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    if labels.all() or not labels.any():
        raise InputError("a ROC curve needs rows of both classes: the labels have one")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    caught = np.cumsum(labels[order])[last_of_tie]
    alarms = last_of_tie + 1 - caught
    rates = np.r_[0, alarms / np.count_nonzero(~labels)]
    recalls = np.r_[0, caught / np.count_nonzero(labels)]
    return rates, recalls, np.r_[np.inf, scores[order][last_of_tie]]


def partial_auroc(scores: np.ndarray, labels: np.ndarray, *, largest_fpr: float) -> float:
    """Area under the ROC curve up to a false-positive rate, scaled so that chance is 0.5 and the best is 1.

    McClish, Med. Decis. Making 9 (1989) 190. Rows must be on one scale: take one fold at a time.
    """
    if not 0 < largest_fpr <= 1:
        raise InputError(f"a false-positive rate of {largest_fpr} is not between 0 and 1")
    rates, recalls, _ = roc_curve(scores, labels)
    stop = np.searchsorted(rates, largest_fpr, side="right")
    last = np.interp(largest_fpr, rates, recalls)
    area = np.trapezoid(np.r_[recalls[:stop], last], np.r_[rates[:stop], largest_fpr])
    chance = largest_fpr**2 / 2
    return float((1 + (area - chance) / (largest_fpr - chance)) / 2)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean precision over the steps of recall, without interpolation: sum of (R_k - R_{k-1}) P_k.

    Depends on the share of positives, unlike AUROC. Davis and Goadrich, ICML 2006, on why not to interpolate.
    """
    rates, recalls, _ = roc_curve(scores, labels)
    caught = recalls[1:] * np.count_nonzero(labels)
    alarms = rates[1:] * np.count_nonzero(~np.asarray(labels, bool))
    return float(np.sum(np.diff(recalls) * caught / (caught + alarms)))
