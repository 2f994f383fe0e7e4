"""Recall at a false-positive rate: the threshold from some groups, recall and realised rate from others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.statistics.bootstrap import RESAMPLES, bootstrap_mean
from analysis.statistics.conformal import check_split, conformal_threshold, groups_needed
from analysis.statistics.interval import Interval


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What a detector does at a threshold set for the false-positive rate `fpr`.

    Either `recall` and `realised_fpr`, both measured on groups that did not set the threshold, or `reason`:
    why there is no figure. `threshold` is None where several thresholds were used (one per fold).
    """

    fpr: float
    recall: Interval | None = None
    realised_fpr: Interval | None = None
    threshold: float | None = None
    reason: str | None = None

    def record(self) -> dict[str, object]:
        """JSON form: {value, low, high, realised_fpr, realised_fpr_interval}, or {value: null, reason}."""
        if self.recall is None or self.realised_fpr is None:
            return {"value": None, "reason": self.reason}
        record: dict[str, object] = {
            "value": self.recall.value,
            "low": self.recall.low,
            "high": self.recall.high,
            "realised_fpr": self.realised_fpr.value,
            "realised_fpr_interval": [self.realised_fpr.low, self.realised_fpr.high],
        }
        if self.recall.caveat or self.realised_fpr.caveat:
            record["caveat"] = self.recall.caveat or self.realised_fpr.caveat
        return record


def measure_flags(
    flagged: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    fpr: float,
    threshold: float | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> OperatingPoint:
    """Recall and realised false-positive rate of decisions that were made without looking at these groups.

    flagged: float in [0, 1] [n] (a share where several thresholds judged the row); labels: bool [n]; groups:
    [n].
    """
    labels = np.asarray(labels, bool)
    if labels.all() or not labels.any():
        missing = "control" if labels.all() else "positive"
        return OperatingPoint(fpr=fpr, reason=f"no {missing} rows to measure on")
    intervals = [
        bootstrap_mean(flagged[rows], groups[rows], level=level, resamples=resamples, seed=seed, noun=noun)
        for rows in (labels, ~labels)
    ]
    return OperatingPoint(fpr=fpr, recall=intervals[0], realised_fpr=intervals[1], threshold=threshold)


def recall_at_fpr(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    calibration: np.ndarray,
    fpr: float,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> OperatingPoint:
    """Threshold from the control rows of calibration groups, recall and realised rate from all other groups.

    scores: float [n]; labels: bool [n]; groups: int or string [n]; calibration: bool [n], true for whole
    groups. A row is flagged where its score is above the threshold. Answers with a reason in place of figures
    where there are too few calibration control groups for `fpr`. Raises InputError where a group is on both
    sides.
    """
    groups, labels = np.asarray(groups), np.asarray(labels, bool)
    calibration = np.asarray(calibration, bool)
    check_split(groups, calibration, said="a group sets the threshold and is measured at it")
    controls = calibration & ~labels
    available = len(np.unique(groups[controls]))
    if available < groups_needed(fpr):
        return OperatingPoint(fpr=fpr, reason=too_few(available, fpr=fpr, noun=noun))
    threshold = conformal_threshold(scores[controls], groups[controls], fpr=fpr)
    rest = ~calibration
    return measure_flags(
        (scores[rest] > threshold).astype(float),
        labels[rest],
        groups[rest],
        fpr=fpr,
        threshold=threshold,
        level=level,
        resamples=resamples,
        seed=seed,
        noun=noun,
    )


def too_few(available: int, *, fpr: float, noun: str = "groups") -> str:
    """Why there is no threshold for `fpr`, and which rate the controls at hand can bear."""
    reason = (
        f"{available} control {noun} to set the threshold on, {groups_needed(fpr)} needed for a false-positive "
        f"rate of {100 * fpr:g} %"
    )
    return f"{reason}; they bear {100 / available:.2g} % at best" if available else reason
