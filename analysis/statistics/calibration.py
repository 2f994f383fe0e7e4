"""Whether probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.statistics.bootstrap import RESAMPLES, bootstrap_mean
from analysis.statistics.interval import Interval


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Rows whose probability lies within one bin: their mean probability, and how often the label was true."""

    probability: float
    frequency: Interval
    rows: int


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared error of probabilities. Brier, Mon. Weather Rev. 78 (1950) 1."""
    return float(np.mean((np.asarray(probabilities, float) - np.asarray(labels, float)) ** 2))


def reliability(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    bins: int = 10,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[ReliabilityBin]:
    """The reliability curve over bins of equal numbers of rows, frequencies with intervals over groups.

    probabilities: float [n]; labels: bool [n]; groups: [n]. DeGroot and Fienberg, The Statistician 32 (1983)
    12.
    """
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels, float)
    return [
        ReliabilityBin(
            probability=float(probabilities[rows].mean()),
            frequency=bootstrap_mean(labels[rows], np.asarray(groups)[rows], resamples=resamples, seed=seed),
            rows=len(rows),
        )
        for rows in _equal_bins(probabilities, bins)
    ]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - frequency| over bins of equal numbers of rows, weighted by rows.

    Naeini et al., AAAI 2015, with equal-mass bins (Nixon et al., arXiv 1904.01685), which are less biased. It
    is above 0 for a perfect model too, by the noise of the frequencies.
    """
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels, float)
    parts = _equal_bins(probabilities, bins)
    gaps = [abs(probabilities[rows].mean() - labels[rows].mean()) * len(rows) for rows in parts]
    return float(sum(gaps) / len(probabilities))


def _equal_bins(probabilities: np.ndarray, bins: int) -> list[np.ndarray]:
    order = np.argsort(probabilities, kind="stable")
    return [rows for rows in np.array_split(order, bins) if len(rows)]
