"""Many detectors as one: a row is flagged where any of them is above the one threshold they share.

Each of d detectors at a rate of its own flags up to d times as often together. Dividing the rate by d (Bonferroni)
holds whatever the dependence, but takes d times the control groups, and too much where detectors agree. The largest of
the d scores is a score like any other, so a threshold set on it holds however many there are and however they depend,
once they are in one unit. What sets the units must not set the threshold: measured in units of its own, a calibration
row lies closer to the middle than a new one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.statistics.conformal import check_split, conformal_threshold, groups_needed
from analysis.statistics.robust import median_mad
from analysis.statistics.tolerance import tolerance_threshold
from store.errors import InputError

UNITS = ("mad", "rank")
GUARANTEES = ("marginal", "conditional")


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """d detectors with their units and the threshold they share.

    unit       `mad`: how many deviations (1.4826 MAD) above the median; keeps its meaning beyond the controls, but a
               detector with heavier tails takes more of the false alarms
               `rank`: -log10 of the share of scaling rows that score as high or higher, itself counted in, so that
               alarms are shared alike; a score beyond all gains 1 for each distance from their median to their largest
    reference  float64: `mad` [2, d], median and deviation; `rank` [a, d], each detector's scaling scores, ascending
    threshold  flagged is what has a fused score above
    fpr        the false-positive rate that the threshold was set for
    guarantee  `marginal` as `conformal_threshold`'s, or `conditional` as `tolerance_threshold`'s
    """

    unit: str
    reference: np.ndarray
    threshold: float
    fpr: float
    guarantee: str

    @property
    def detectors(self) -> int:
        return self.reference.shape[1]

    def in_units(self, scores: np.ndarray) -> np.ndarray:
        """float64 [n, d] of scores [n, d]. Raises InputError for another number of detectors, and for NaN or ±inf."""
        scores = _finite(scores)
        if scores.shape[1] != self.detectors:
            raise InputError(f"scores of {scores.shape[1]} detectors, the threshold is for {self.detectors}")
        return _in_units(scores, self.reference, self.unit)

    def fused(self, scores: np.ndarray) -> np.ndarray:
        """The largest of the detectors' scores in units, float64 [n]; raises as `in_units` does."""
        return np.asarray(self.in_units(scores).max(axis=1))

    def flags(self, scores: np.ndarray) -> np.ndarray:
        """bool [n]; raises as `in_units` does."""
        return self.fused(scores) > self.threshold

    def record(self) -> dict[str, object]:
        """JSON form; `bonferroni_groups` is what a threshold for each detector at fpr / d would have taken."""
        return {
            "detectors": self.detectors,
            "unit": self.unit,
            "threshold": self.threshold,
            "fpr": self.fpr,
            "guarantee": self.guarantee,
            "bonferroni_groups": groups_needed(self.fpr / self.detectors),
        }


def fuse(
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    scaling: np.ndarray,
    fpr: float,
    unit: str = "mad",
    guarantee: str = "marginal",
) -> Fusion:
    """Units from some control groups, the joint threshold from the largest score of each row of the others.

    scores: float [n, d], of control rows; groups: int or string [n]; scaling: bool [n], true for the whole groups that
    set the units. Flagged with probability <= fpr is, for exchangeable groups: a row of a new group, on average over
    calibrations (`marginal`: Lee, Barber and Willett, arXiv 2306.06342, section 3), or with 95 % confidence any row of
    one (`conditional`: Vovk, ACML 2012, proposition 2a).

    Raises InputError for scores that are NaN or infinite, a group on both sides, a side without rows, a detector whose
    scaling scores are (`mad`: for more than half) a single value, and too few threshold groups for `fpr`.
    """
    if unit not in UNITS or guarantee not in GUARANTEES:
        raise InputError(
            f"units are {' or '.join(UNITS)}, guarantees {' or '.join(GUARANTEES)}: not {unit}, {guarantee}"
        )
    scores, groups, scaling = _finite(scores), np.asarray(groups), np.asarray(scaling, bool)
    if not scaling.any() or scaling.all():
        raise InputError("units and threshold take control groups each: give some to `scaling` and leave some")
    check_split(groups, scaling, said="a group sets the units and the threshold")
    reference = np.stack(median_mad(scores[scaling])) if unit == "mad" else np.sort(scores[scaling], axis=0)
    if unit == "rank" and (reference[-1] == np.median(reference, axis=0)).any():
        still = int(np.argmax(reference[-1] == np.median(reference, axis=0)))
        raise InputError(f"no scaling row of detector {still} is above the median: it has no ranks, leave it out")
    largest = _in_units(scores[~scaling], reference, unit).max(axis=1)
    set_threshold = conformal_threshold if guarantee == "marginal" else tolerance_threshold
    threshold = set_threshold(largest, groups[~scaling], fpr=fpr)
    return Fusion(unit=unit, reference=reference, threshold=threshold, fpr=fpr, guarantee=guarantee)


def _in_units(scores: np.ndarray, reference: np.ndarray, unit: str) -> np.ndarray:
    if unit == "mad":
        return np.asarray((scores - reference[0]) / reference[1])
    rows, top = len(reference), reference[-1]
    below = [np.searchsorted(known, column, side="left") for known, column in zip(reference.T, scores.T, strict=True)]
    beyond = np.maximum(scores - top, 0) / (top - np.median(reference, axis=0))
    return np.asarray(np.log10(rows + 1) - np.log10(rows + 1 - np.stack(below, axis=1)) + beyond)


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise InputError(f"fused scores have a row for each prompt and a column for each detector, not {scores.shape}")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise InputError(f"{bad} of {len(scores)} rows have scores that are NaN or infinite: look at the activations")
    return scores
