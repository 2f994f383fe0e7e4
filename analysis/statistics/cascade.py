"""A cheap score decides which rows an expensive judge sees: what is caught for what is paid.

A row is flagged where its cheap score is above one threshold and the judge's above another. For each share of control
groups that may be sent on, both thresholds come from the calibration groups, the judge's so that the whole cascade
holds the false-positive rate: the fewer controls it sees, the lower its threshold may be. So the judge alone (all is
sent), the cheap score alone (nothing is) and all between are compared at one false-positive rate. What a cascade costs
and catches is told from the other groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.statistics.bootstrap import RESAMPLES, bootstrap_mean
from analysis.statistics.conformal import check_split, conformal_threshold
from analysis.statistics.interval import Interval
from analysis.statistics.operating_point import OperatingPoint, measure_flags
from analysis.statistics.tolerance import group_maxima
from store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a row costs, in any unit: `cheap` is paid for every row, `judge` for each that is sent on.

    prevalence  share of positives in the traffic that is paid for: 0 where they are rare. A study's own share of
                positives says nothing of it.
    """

    cheap: float
    judge: float
    prevalence: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.cheap < np.inf and 0 <= self.judge < np.inf and 0 <= self.prevalence <= 1):
            raise InputError(
                f"costs of {self.cheap} and {self.judge} at a prevalence of {self.prevalence}: costs are not negative, "
                "and a prevalence is from 0 to 1"
            )

    def per_row(self, sent: tuple[float, float]) -> float:
        """With these shares of controls and of positives sent on."""
        return self.cheap + self.judge * ((1 - self.prevalence) * sent[0] + self.prevalence * sent[1])


@dataclass(frozen=True, kw_only=True)
class CascadePoint:
    """One cascade: chosen by figures of the calibration groups, measured on the others.

    name             `judge alone`, `cheap alone`, or `cascade`
    cheap_threshold  sent on is what has a cheap score above; −inf for the judge alone, inf for the cheap score alone
    threshold        flagged is what was sent and has a judge's score above; for the cheap score alone its threshold
    calibration      (cost, recall) on calibration groups: what choices are made by, and too good after a choice
    sent             share of control rows that the judge sees, with its interval
    sent_positives   share of positive rows that it sees
    cost             per row of traffic
    point            recall and realised false-positive rate
    """

    name: str
    cheap_threshold: float
    threshold: float
    calibration: tuple[float, float]
    sent: Interval
    sent_positives: Interval
    cost: float
    point: OperatingPoint

    def record(self) -> dict[str, object]:
        """JSON form; infinite thresholds are null."""
        return {
            "name": self.name,
            "cheap_threshold": self.cheap_threshold if np.isfinite(self.cheap_threshold) else None,
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "calibration": {"cost": self.calibration[0], "recall": self.calibration[1]},
            "sent": self.sent.record(),
            "sent_positives": self.sent_positives.record(),
            "cost": self.cost,
            **self.point.record(),
        }


@dataclass(frozen=True, kw_only=True)
class CascadeFrontier:
    """Cascades by rising cost on the calibration groups; `frontier` names those that no mixture of others beats there.

    A row sent at random to one of two cascades costs and is caught as their average, so what counts is the upper
    convex hull of (cost, recall), as for ROC curves: Provost and Fawcett, Machine Learning 42 (2001) 203.
    """

    points: tuple[CascadePoint, ...]
    frontier: tuple[int, ...]

    def within(self, budget: float) -> CascadePoint:
        """The cascade with the highest calibration recall of those whose calibration cost is within `budget` per row.

        Its figures are of groups that did not choose it. The level of its threshold holds for a cascade that is fixed
        beforehand; a choice by recall prefers thresholds that came out low, so believe the realised rate, not the
        nominal one. Raises InputError where the budget pays for none.
        """
        paid = [point for point in self.points if point.calibration[0] <= budget]
        if not paid:
            cheapest = min(point.calibration[0] for point in self.points)
            raise InputError(f"a budget of {budget:g} a row pays for none: the cheapest costs {cheapest:g}")
        return max(paid, key=lambda point: (point.calibration[1], -point.calibration[0]))


def cascade_frontier(
    cheap: np.ndarray,
    judge: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    calibration: np.ndarray,
    fpr: float,
    costs: Costs,
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> CascadeFrontier:
    """Cascades that send on a row of at most these `shares` of control groups, and both detectors alone.

    cheap, judge: float [n], the judge's of every row, sent or not; labels: bool [n]; groups: int or string [n];
    calibration: bool [n], true for whole groups; a share of less than one group counts as one. Intervals are
    pointwise, `bootstrap_mean`'s.

    The cheap threshold is the k-th largest of the control groups' largest scores, the judge's split conformal over
    groups (`conformal_threshold`), and both may come from the same groups: were the new group a calibration group too,
    the (k + 1)-th largest would be the same number wherever a row of the new group is sent on, so the scores that the
    second threshold is set on are exchangeable with the new row's, and P(flagged) <= fpr as it would be for one score.

    Raises InputError for scores that are NaN or infinite, a share not within (0, 1), a group on both sides, a class
    missing on either side, and fewer control groups than `fpr` takes.
    """
    cheap, judge, labels = np.asarray(cheap, float), np.asarray(judge, float), np.asarray(labels, bool)
    groups, calibration = np.asarray(groups), np.asarray(calibration, bool)
    _check(cheap, judge, labels, groups, calibration, shares)
    controls, positives, rest = calibration & ~labels, calibration & labels, ~calibration
    largest = np.sort(group_maxima(cheap[controls], groups[controls]))[::-1]
    ranks = {max(1, math.floor(round(share * (len(largest) + 1), 9))) for share in shares}
    cuts = sorted({float(largest[min(rank, len(largest)) - 1]) for rank in ranks})
    tried = [("cheap alone", np.inf), *(("cascade", cut) for cut in cuts), ("judge alone", -np.inf)]
    points = []
    for name, cut in tried:
        # the judge alone needs no cheap score
        paid = Costs(cheap=0.0, judge=costs.judge, prevalence=costs.prevalence) if name == "judge alone" else costs
        sent = cheap > cut
        # what is not sent is below whatever the judge says
        scores = cheap if name == "cheap alone" else np.where(sent, judge, -np.inf)
        threshold = conformal_threshold(scores[controls], groups[controls], fpr=fpr)
        flagged = scores > threshold
        seen = [
            bootstrap_mean(sent[rows], groups[rows], level=level, resamples=resamples, seed=seed, noun=noun)
            for rows in (rest & ~labels, rest & labels)
        ]
        points.append(
            CascadePoint(
                name=name,
                cheap_threshold=cut,
                threshold=threshold,
                calibration=(
                    paid.per_row((float(sent[controls].mean()), float(sent[positives].mean()))),
                    float(flagged[positives].mean()),
                ),
                sent=seen[0],
                sent_positives=seen[1],
                cost=paid.per_row((seen[0].value, seen[1].value)),
                point=measure_flags(
                    flagged[rest].astype(float),
                    labels[rest],
                    groups[rest],
                    fpr=fpr,
                    threshold=threshold,
                    level=level,
                    resamples=resamples,
                    seed=seed,
                    noun=noun,
                ),
            )
        )
    points.sort(key=lambda point: point.calibration)
    return CascadeFrontier(points=tuple(points), frontier=_hull([point.calibration for point in points]))


def _hull(points: list[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the upper convex hull from the cheapest to the highest recall, of (cost, recall) by rising cost.

    Andrew's monotone chain, Inf. Process. Lett. 9 (1979) 216.
    """
    kept: list[int] = []
    for number, (cost, recall) in enumerate(points):
        if kept and recall <= points[kept[-1]][1]:
            continue  # dearer and no better
        if kept and cost == points[kept[-1]][0]:
            kept.pop()
        while len(kept) > 1:
            (x0, y0), (x1, y1) = points[kept[-2]], points[kept[-1]]
            if (y1 - y0) * (cost - x0) > (recall - y0) * (x1 - x0):
                break
            kept.pop()
        kept.append(number)
    return tuple(kept)


def _check(
    cheap: np.ndarray,
    judge: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    calibration: np.ndarray,
    shares: tuple[float, ...],
) -> None:
    for name, scores in (("cheap", cheap), ("judge", judge)):
        bad = int(np.count_nonzero(~np.isfinite(scores)))
        if bad:
            raise InputError(f"{bad} of {len(scores)} {name} scores are NaN or infinite: score every row by both")
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares to send on are within 0 and 1, not {shares}: nothing and all are compared anyway")
    check_split(groups, calibration, said="a group sets the thresholds and is measured at them")
    for side, rows in (("calibration", calibration), ("measured", ~calibration)):
        if not labels[rows].any() or labels[rows].all():
            raise InputError(f"a cascade's recall and cost take rows of both classes: the {side} rows have one")
