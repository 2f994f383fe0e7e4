"""Turns and transcripts: a transcript is flagged where any of its turns is, so its chance of a false alarm grows.

With k turns whose false alarms are independent a rate of a per turn is 1 - (1 - a)^k per transcript, and with dependent
ones it is anything from a to k a. A threshold that is to hold for transcripts is therefore set on transcripts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.statistics.bootstrap import RESAMPLES, bootstrap_mean
from analysis.statistics.curves import roc_curve
from analysis.statistics.interval import Interval
from analysis.statistics.operating_point import OperatingPoint, recall_at_fpr
from analysis.statistics.tolerance import group_maxima
from store.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class TurnCurve:
    """What a threshold does to turns and to transcripts, each float64 [k], from the strictest threshold on.

    threshold       flagged is what scores at least this; infinity first
    turn_fpr        share of the turns of control transcripts that are flagged
    transcript_fpr  share of control transcripts with a flagged turn
    transcript_tpr  share of positive transcripts with a flagged turn
    """

    threshold: np.ndarray
    turn_fpr: np.ndarray
    transcript_fpr: np.ndarray
    transcript_tpr: np.ndarray


def transcript_scores(scores: np.ndarray, transcripts: np.ndarray, *, count: int) -> np.ndarray:
    """The largest score of each transcript's turns, float64 [count].

    scores: float [t], one per turn; transcripts: int [t], which transcript a turn is of, from 0 to below `count`.
    Raises InputError on scores that are NaN or infinite, a number out of range, or a transcript without turns: it
    could never be flagged.
    """
    scores, transcripts = np.asarray(scores, float), np.asarray(transcripts)
    if len(scores) != len(transcripts):
        raise InputError(f"{len(scores)} scores but {len(transcripts)} transcript numbers: give one for each turn")
    if not np.isfinite(scores).all():
        bad = int(np.count_nonzero(~np.isfinite(scores)))
        raise InputError(f"{bad} of {len(scores)} turns have scores that are NaN or infinite: look at the activations")
    held = np.unique(transcripts)
    if len(held) and not 0 <= held[0] <= held[-1] < count:
        raise InputError(f"turns are of transcripts {held[0]} to {held[-1]}, there are labels for {count}")
    if len(held) < count:
        missing = int(np.setdiff1d(np.arange(count), held)[0])
        raise InputError(f"{count - len(held)} of {count} transcripts have no turns, number {missing} first: leave out")
    return group_maxima(scores, transcripts)


def turn_curve(scores: np.ndarray, transcripts: np.ndarray, labels: np.ndarray) -> TurnCurve:
    """Rates over the thresholds at which a transcript more is flagged.

    scores: float [t] of turns; transcripts: int [t], the index into labels: bool [T] of transcripts. Which turn of a
    positive transcript is the bad one is not known, so turns have a false-positive rate only. Raises InputError as
    `transcript_scores` does, and where there is one class only.
    """
    scores, transcripts, labels = np.asarray(scores, float), np.asarray(transcripts), np.asarray(labels, bool)
    largest = transcript_scores(scores, transcripts, count=len(labels))
    rates, recalls, thresholds = roc_curve(largest, labels)
    controls = np.sort(scores[~labels[transcripts]])
    flagged = len(controls) - np.searchsorted(controls, thresholds, side="left")
    return TurnCurve(
        threshold=thresholds, turn_fpr=flagged / len(controls), transcript_fpr=rates, transcript_tpr=recalls
    )


@dataclass(frozen=True, kw_only=True)
class TranscriptPoint:
    """A threshold that holds for transcripts: what it does to them, and to turns.

    transcripts  recall and false-positive rate of transcripts, or the reason why there is no threshold
    turn_fpr     share of the turns of control transcripts that are flagged; None without a threshold
    """

    transcripts: OperatingPoint
    turn_fpr: Interval | None = None

    def record(self) -> dict[str, object]:
        """JSON form: the operating point's, with turn_fpr {value, low, high, …} or null."""
        return {**self.transcripts.record(), "turn_fpr": self.turn_fpr.record() if self.turn_fpr else None}


def recall_of_transcripts(
    scores: np.ndarray,
    transcripts: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    calibration: np.ndarray,
    fpr: float,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> TranscriptPoint:
    """A threshold of which a new group's control transcript has a turn above with probability <= fpr, and its cost.

    scores: float [t] of turns; transcripts: int [t], the index of a turn's transcript into labels: bool [T], groups:
    int or string [T] and calibration: bool [T], true for whole groups. Split conformal prediction of the transcripts'
    largest scores (`conformal_threshold`), recall and realised rates from the other groups, whose intervals are
    Clopper-Pearson's for one row per group and otherwise the cluster bootstrap's. However many turns a transcript has
    and however they depend, the level holds as long as new groups are exchangeable with the calibration's, lengths
    included: for longer transcripts it does not. Answers with a reason where there are too few control groups.
    Raises InputError as `transcript_scores` does, and where a group is on both sides.
    """
    scores, transcripts, labels = np.asarray(scores, float), np.asarray(transcripts), np.asarray(labels, bool)
    groups, calibration = np.asarray(groups), np.asarray(calibration, bool)
    largest = transcript_scores(scores, transcripts, count=len(labels))
    point = recall_at_fpr(
        largest,
        labels,
        groups,
        calibration=calibration,
        fpr=fpr,
        level=level,
        resamples=resamples,
        seed=seed,
        noun=noun,
    )
    if point.threshold is None:
        return TranscriptPoint(transcripts=point)
    measured = (~calibration & ~labels)[transcripts]
    flagged = (scores[measured] > point.threshold).astype(float)
    if not len(flagged):
        return TranscriptPoint(transcripts=point)
    rate = bootstrap_mean(
        flagged, groups[transcripts[measured]], level=level, resamples=resamples, seed=seed, noun=noun
    )
    return TranscriptPoint(transcripts=point, turn_fpr=rate)
