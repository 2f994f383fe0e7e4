"""Sums of feature rows by fold: what every closed-form fit and every standardisation is made from.

A training set that leaves folds out is the total less those folds, so one pass serves all of them, all labels
and all penalties. Sums run in float64 over values shifted by the first block's mean, since activations with
one or two dimensions a hundred times the rest lose their variance to cancellation otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.probes.rows import Rows


@dataclass(frozen=True, kw_only=True)
class FoldMoments:
    """Sums over the rows of each fold; all float64.

    shift     [d]: what was subtracted from every row first
    count     [F]
    total     [F, d]
    square    [F, d]
    gram      [F, d, d], or None where it was not asked for
    positives [F, L]: rows of the positive class, for each of L labels
    positive_total [F, L, d]: their sums
    """

    shift: np.ndarray
    count: np.ndarray
    total: np.ndarray
    square: np.ndarray
    gram: np.ndarray | None
    positives: np.ndarray
    positive_total: np.ndarray

    def __add__(self, other: FoldMoments) -> FoldMoments:
        """Moments of both sets of rows, brought to this one's shift."""
        step = other.shift - self.shift
        count, total = other.count[:, None], other.total
        gram = None
        if self.gram is not None and other.gram is not None:
            cross = total[:, :, None] * step
            gram = self.gram + other.gram + cross + cross.transpose(0, 2, 1)
            gram += other.count[:, None, None] * np.outer(step, step)
        return FoldMoments(
            shift=self.shift,
            count=self.count + other.count,
            total=self.total + total + count * step,
            square=self.square + other.square + 2 * total * step + count * step**2,
            gram=gram,
            positives=self.positives + other.positives,
            positive_total=self.positive_total + other.positive_total + other.positives[:, :, None] * step,
        )

    @property
    def centre(self) -> np.ndarray:
        """Mean over all rows [d]."""
        return self.shift + self.total.sum(0) / self.count.sum()

    @property
    def scale(self) -> np.ndarray:
        """Standard deviation over all rows [d]; infinity where a feature does not vary."""
        return spread(float(self.count.sum()), self.total.sum(0), self.square.sum(0))


def spread(count: float, total: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Standard deviations from sums, infinity where rounding alone could have made the variance."""
    mean_square = square / count
    variance = mean_square - (total / count) ** 2
    varies = variance > 1e-12 * mean_square
    return np.where(varies, np.sqrt(np.where(varies, variance, 1)), np.inf)


def fold_moments(rows: Rows, folds: np.ndarray, targets: np.ndarray, *, count: int, gram: bool) -> FoldMoments:
    """One pass over the rows.

    folds: int [n]; targets: bool [n, L]; count: number of folds. Memory: count x d x d where `gram`, else d.
    """
    width, labels = rows.width, targets.shape[1]
    shift = np.zeros(width)
    sums = FoldMoments(
        shift=shift,
        count=np.bincount(folds, minlength=count).astype(float),
        total=np.zeros((count, width)),
        square=np.zeros((count, width)),
        gram=np.zeros((count, width, width)) if gram else None,
        positives=np.stack([np.bincount(folds, column, minlength=count) for column in targets.T], axis=1),
        positive_total=np.zeros((count, labels, width)),
    )
    for part, raw in rows.blocks():
        values = raw.astype(np.float64)
        if part.start == 0:
            shift[:] = values.mean(axis=0)
        values -= shift
        for fold in range(count):
            chosen = values[folds[part] == fold]
            sums.total[fold] += chosen.sum(axis=0)
            sums.square[fold] += np.einsum("nd,nd->d", chosen, chosen)
            sums.positive_total[fold] += targets[part][folds[part] == fold].T.astype(float) @ chosen
            if sums.gram is not None:
                sums.gram[fold] += chosen.T @ chosen
    return sums
