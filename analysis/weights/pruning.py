"""Weights that one side of a pair has set to zero, and what is left to compare without them.

Removing a weight w adds −w to ΔW: the spectrum of a pruned model's difference is that of the weights it lost, not of
what it learned. The entries that either side holds as an exact zero and the other does not are left out (set to zero
in ΔW), and the rest is compared.

Where the missing entries are scattered, the rest of a change of low rank is that change, thinned, plus noise of
about the entries' own size. That noise is not rounding; its edge comes from `analysis.weights.signflips`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.pair import Pair
from analysis.weights.permutation import matrix_rows

LARGE = 0.05  # share of new zeros from which a matrix counts as pruned
COARSE = 0.4  # the same where the weights lie on a grid of few levels, of which zero is one


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Exact zeros that one side has and the other has not.

    side       `tuned`, or `base`
    share      of the matrix's entries
    rows       rows that are zero as a whole; columns likewise
    scattered  share of new zeros among the entries outside these rows and columns
    pattern    `2:4` where every four neighbours have two zeros
    """

    side: str
    share: float
    rows: int
    columns: int
    scattered: float
    pattern: str | None

    @property
    def spread(self) -> float:
        """How much the noise of the holes exceeds that of independent ones, at most.

        Two holes in every four exclude each other: their covariance has the eigenvalue 0 once and 4/3 of the variance
        three times.
        """
        return (4 / 3) ** 0.5 if self.pattern else 1.0

    @property
    def note(self) -> str:
        parts = [f"{100 * self.share:.3g} % zeros"]
        if self.rows:
            parts.append(f"{self.rows} whole rows")
        if self.columns:
            parts.append(f"{self.columns} whole columns")
        if self.pattern:
            parts.append(f"{self.pattern} structured")
        elif self.scattered >= LARGE:
            parts.append("unstructured")
        if self.side == "tuned":
            return f"pruned: {', '.join(parts)} where the base has none; what is left is compared"
        return f"base pruned, or the pair in the wrong order: {', '.join(parts)} where the tuned model has none"


def sampled_share(sample: np.ndarray, delta: np.ndarray) -> tuple[float, float]:
    """Shares of new zeros in the tuned model and in the base, from rows of the tuned matrix and of ΔW."""
    changed = delta != 0
    return float(((sample == 0) & changed).mean()), float(((sample == delta) & changed).mean())


def find_pruning(
    tuned: Checkpoint, pair: Pair, delta: torch.Tensor, side: str, *, first: int, last: int, large: float
) -> Pruning | None:
    """What one side pruned, by one pass over the tuned weights; None where it is less than `large` and no whole row.

    delta  ΔW [rows, columns] as stored
    """
    m, n = delta.shape
    rows = torch.zeros(m, dtype=torch.long)
    columns = torch.zeros(n, dtype=torch.long)
    along_rows = along_columns = m % 4 == 0 and n % 4 == 0
    for here, zeros in _zeros(tuned, pair, delta, side, first=first, last=last):
        rows[here], columns = zeros.sum(dim=1), columns + zeros.sum(dim=0)
        along_rows = along_rows and bool((zeros.reshape(len(zeros), -1, 4).sum(dim=2) >= 2).all())
        along_columns = along_columns and bool((zeros.reshape(-1, 4, n).sum(dim=1) >= 2).all())
    whole_rows, whole_columns = int((rows == n).sum()), int((columns == m).sum())
    total = int(rows.sum())
    outside = (m - whole_rows) * (n - whole_columns)
    scattered = (total - (m * n - outside)) / outside if outside else 0.0
    if scattered < large and not whole_rows and not whole_columns:
        return None
    half = 0.45 <= scattered <= 0.55 and (along_rows or along_columns)
    return Pruning(
        side=side,
        share=total / (m * n),
        rows=whole_rows,
        columns=whole_columns,
        scattered=scattered,
        pattern="2:4" if half else None,
    )


def leave_out(tuned: Checkpoint, pair: Pair, delta: torch.Tensor, side: str, *, first: int, last: int) -> None:
    """Sets ΔW to zero, in place, where the pruned side has a zero."""
    for here, zeros in _zeros(tuned, pair, delta, side, first=first, last=last):
        delta[here].masked_fill_(zeros, 0.0)


def _zeros(
    tuned: Checkpoint, pair: Pair, delta: torch.Tensor, side: str, *, first: int, last: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the matrix, and where one side has a zero there that the other has not (the base is tuned − ΔW)."""
    start = 0
    for theirs in matrix_rows(tuned, pair.tuned_name, pair, first, last):
        here = slice(start, start + len(theirs))
        start += len(theirs)
        part = delta[here]
        yield here, (part != 0) & (theirs == (0.0 if side == "tuned" else part))
