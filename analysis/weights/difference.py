"""The difference of one weight: ΔW in float32 and what one pass over both sides tells with it.

One matrix pair is in memory at a time, as ΔW and a few megabytes of rows of either side.
"""

import math
from dataclasses import dataclass

import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.noise import grid_of
from analysis.weights.pair import Pair
from store.errors import InputError

CHUNK = 1 << 20  # entries of a matrix handled at once: 4 MB in float32


@dataclass(frozen=True, kw_only=True)
class Difference:
    """ΔW of one matrix and what one pass over both sides tells with it.

    delta           float32 [rows, columns], as stored, trailing axes flattened
    base_square     ‖W_base‖²; tuned_square, product (⟨W_base, W_tuned⟩) and delta_square (‖ΔW‖²) likewise
    moved           share of entries that differ
    grid            coarsest dtype that holds all tuned values
    """

    delta: torch.Tensor
    base_square: float
    tuned_square: float
    product: float
    delta_square: float
    moved: float
    grid: torch.dtype

    @property
    def cosine(self) -> float:
        """Cosine between the two matrices: near 1 for a fine-tune, near 0 for unrelated weights."""
        scale = (self.base_square * self.tuned_square) ** 0.5
        return self.product / scale if scale else 1.0


def tensor_rows(checkpoint: Checkpoint, tensor: str, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop) as float32 [rows, columns] of their own, trailing axes flattened.

    Raises InputError for NaN and infinities, naming the tensor.
    """
    rows = checkpoint.rows(tensor, start, stop).to(torch.float32, copy=True)
    rows = rows.reshape(rows.shape[0], -1) if rows.ndim else rows.reshape(1, 1)
    if not bool(torch.isfinite(rows.sum())) and not bool(torch.isfinite(rows).all()):
        raise InputError(f"{checkpoint.name}: {tensor} holds NaN or infinite values: the checkpoint is damaged")
    return rows


def difference(base: Checkpoint, tuned: Checkpoint, pair: Pair, *, first: int, last: int) -> Difference:
    """ΔW of rows [first, last) of a pair. Raises InputError for NaN and infinities, naming the side."""
    columns = math.prod(pair.shape[1:])
    delta = torch.empty(last - first, columns)
    base_square = tuned_square = product = delta_square = 0.0
    moved = 0
    grid: torch.dtype | None = None
    stored = tuned.dtype(pair.tuned_name)
    step = max(1, CHUNK // columns)
    for start in range(first, last, step):
        stop = min(last, start + step)
        ours = tensor_rows(base, pair.base_name, start, stop)
        theirs = tensor_rows(tuned, pair.tuned_name, start, stop)
        part = torch.sub(theirs, ours, out=delta[start - first : stop - first])
        base_square += _dot(ours, ours)
        tuned_square += _dot(theirs, theirs)
        product += _dot(ours, theirs)
        delta_square += _dot(part, part)
        moved += int(torch.count_nonzero(part))
        if grid != stored:
            here = grid_of(theirs, stored)
            grid = here if grid in (None, here) else stored
    return Difference(
        delta=delta,
        base_square=base_square,
        tuned_square=tuned_square,
        product=product,
        delta_square=delta_square,
        moved=moved / max(1, delta.numel()),
        grid=grid or stored,
    )


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    """⟨one, other⟩; in float64 where float32 overflows."""
    found = float(torch.dot(one.flatten(), other.flatten()))
    return found if math.isfinite(found) else float(torch.dot(one.double().flatten(), other.double().flatten()))
