"""What a fit's curves are drawn from: every example's score by a model that never saw its fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from analysis.statistics.curves import roc_curve


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Out-of-fold scores of a nested choice: those that its AUROC is of.

    scores  float32 [n], of the model without the example's fold, at the site and penalty chosen without it
    label   bool [n]
    fold    int [n]; scores of different folds' models are on no common scale
    group   string [n]
    """

    scores: np.ndarray
    label: np.ndarray
    fold: np.ndarray
    group: np.ndarray

    def standardised(self) -> np.ndarray:
        """Scores less the mean of their fold, in units of its standard deviation: float64 [n]. Labels have no part."""
        told = np.zeros(len(self.scores))
        for fold in np.unique(self.fold):
            own = self.scores[self.fold == fold].astype(np.float64)
            told[self.fold == fold] = (own - own.mean()) / (own.std() or 1.0)
        return told

    def probabilities(self) -> np.ndarray:
        """1 / (1 + exp(-score)), of scores that are log odds: float64 [n]."""
        return np.asarray(expit(self.scores.astype(np.float64)))

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """False-positive rates, ascending, and recalls, the folds' curves averaged at equal rates: float64 [k] each.

        Vertical averaging (Fawcett, Pattern Recognition Letters 27 (2006) 861, section 8.1), a fold weighted by its
        pairs of a positive and a negative, so that the area is the AUROC within folds (`Ranking`), ties counting one
        half. A rate stands twice, with the recall where its step begins and where it ends. Folds of one class have no
        curve and are left out.
        """
        curves, pairs = [], []
        for fold in np.unique(self.fold):
            here = self.fold == fold
            positives = int(self.label[here].sum())
            if 0 < positives < here.sum():
                curves.append(roc_curve(self.scores[here], self.label[here])[:2])
                pairs.append(positives * (int(here.sum()) - positives))
        grid = np.unique(np.concatenate([rates for rates, _ in curves]))
        weights = np.array(pairs) / np.sum(pairs)
        steps = np.einsum("c,cgs->gs", weights, np.stack([_steps(*curve, grid) for curve in curves]))
        return np.repeat(grid, 2), steps.ravel()


def _steps(rates: np.ndarray, recalls: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Recall where each rate's step begins and ends, straight between a curve's points: float64 [grid, 2]."""
    distinct, first = np.unique(rates, return_index=True)
    begins, ends = recalls[first], recalls[np.r_[first[1:], len(rates)] - 1]
    right = np.searchsorted(distinct, grid)  # the curve's first rate at or above the grid's
    left = np.maximum(right - 1, 0)
    at = distinct[right] == grid
    span = np.where(at, 1.0, distinct[right] - distinct[left])
    between = ends[left] + (begins[right] - ends[left]) * (grid - distinct[left]) / span
    return np.stack([np.where(at, begins[right], between), np.where(at, ends[right], between)], axis=1)
