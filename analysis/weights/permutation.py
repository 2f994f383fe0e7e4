"""Hidden units that a tuned model keeps in another order than its base.

The rows of gate and up with the columns of down, or whole attention heads, can be shuffled without changing what a
model computes. Entry by entry the weights then have nothing in common; row by row they do. Rows (or columns) are
matched by the cosine between them, and the base is put into the tuned model's order before it is compared.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.difference import CHUNK, tensor_rows
from analysis.weights.pair import Pair
from analysis.weights.roles import Role

SKETCH = 128  # numbers that stand for a unit while units are matched
ESTRANGED = 0.5  # cosine between a unit and itself in the base below which it may have moved
MATCHED = 0.5  # cosine from which two units that are each other's nearest are the same
ASSIGNED = 2000  # units that are matched all together where they are not each other's nearest
LOOKALIKE = 0.25  # change of a unit, as a share of the mean squared length of units, that makes a search worth it

_UNITS = {"gate": "hidden units", "up": "hidden units", "gate_up": "hidden units", "down": "hidden units"}
_UNITS |= {"q": "attention heads", "k": "attention heads", "v": "attention heads", "qkv": "attention heads"}
_UNITS |= {"o": "attention heads", "router": "experts"}


def hidden_axis(role: Role) -> int | None:
    """Axis of the stored matrix [rows, columns] whose units may be in any order; None where their order has a meaning.

    It is the side that does not live in the residual stream: outputs of what reads from it, inputs of what writes
    to it.
    """
    if role.name not in _UNITS:
        return None
    outputs = 1 if role.transposed else 0
    return outputs if role.side == "right" else 1 - outputs


def matrix_rows(checkpoint: Checkpoint, tensor: str, pair: Pair, first: int, last: int) -> Iterator[torch.Tensor]:
    """The matrix of rows [first, last) of a tensor, a few megabytes at a time: float32 [some rows, columns].

    An expert of a stacked tensor (last = first + 1) is a matrix of its own, and comes whole.
    """
    columns = math.prod(pair.shape[1:])
    step = max(1, CHUNK // columns // 4) * 4  # four rows stay together: the pattern 2:4 is told from them
    for start in range(first, last, step):
        rows = tensor_rows(checkpoint, tensor, start, min(last, start + step))
        yield rows.reshape(pair.shape[1:]) if stacked(pair) else rows


def stacked(pair: Pair) -> bool:
    """Whether a tensor holds one matrix per expert."""
    return len(pair.shape) == 3 and ".experts." in pair.name


def may_be_permuted(delta: torch.Tensor, base_square: float, axis: int) -> bool:
    """Whether some unit changed by as much as another in its place would: cheap, and rarely so in a fine-tune."""
    typical = LOOKALIKE * base_square / delta.shape[axis]
    if float(torch.linalg.vector_norm(delta)) ** 2 < typical:
        return False
    return bool(torch.linalg.vector_norm(delta, dim=1 - axis).max() ** 2 >= typical)


def find_order(
    base: Checkpoint, tuned: Checkpoint, pair: Pair, axis: int, *, first: int, last: int
) -> np.ndarray | None:
    """order [units], int64: unit i of the tuned matrix is unit order[i] of the base's. None where nothing moved.

    Units are matched that are each other's nearest, among those that are unlike themselves in the base; an order is
    believed when it finds at least half of these. The rest are assigned so that their cosines add up to the most.
    """
    ours, theirs, own = _sketches(base, tuned, pair, axis, first=first, last=last)
    lost = torch.nonzero(own < ESTRANGED).flatten()
    if len(lost) < 2:
        return None
    nearest, likeness, back = _nearest(theirs[lost], ours[lost])
    here = torch.arange(len(lost))
    found = (back[nearest] == here) & (likeness >= MATCHED) & (nearest != here)
    if int(found.sum()) < max(2, len(lost) / 2):
        return None
    order = np.arange(len(own))
    order[lost[found].numpy()] = lost[nearest[found]].numpy()
    left = lost[~found]
    free = lost[torch.isin(here, nearest[found], invert=True)]
    if len(left) <= ASSIGNED:
        _, columns = linear_sum_assignment((theirs[left] @ ours[free].T).numpy(), maximize=True)
        free = free[torch.from_numpy(columns)]
    order[left.numpy()] = free.numpy()
    return order


def order_note(order: np.ndarray, role: Role) -> str:
    """What moved, in words. Units that moved in runs of one length are named with it: heads."""
    moved = int((order != np.arange(len(order))).sum())
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    run = math.gcd(len(order), *(int(place) for place in breaks))
    blocks = f", in blocks of {run}" if run > 1 else ""
    return f"{_UNITS[role.name]} permuted: {moved} of {len(order)} moved{blocks}; compared in the tuned model's order"


class Reordered:
    """A checkpoint of which one matrix is in another order along one axis; that matrix is held in memory, as stored."""

    def __init__(self, base: Checkpoint, pair: Pair, axis: int, order: np.ndarray, *, first: int, last: int) -> None:
        self.name = base.name
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        self._base, self._first = base, first
        index = torch.from_numpy(order)
        if stacked(pair):
            self._held = base.rows(pair.base_name, first, last).index_select(1 + axis, index)
            return
        columns = math.prod(pair.shape[1:])
        self._held = torch.empty((last - first, *pair.shape[1:]), dtype=base.dtype(pair.base_name))
        place = torch.argsort(index)
        step = max(1, CHUNK // columns)
        for start in range(first, last, step):
            rows = base.rows(pair.base_name, start, min(last, start + step))
            here = slice(start - first, start - first + len(rows))
            if axis == 0:
                self._held[place[here]] = rows
            else:
                self._held[here] = rows.flatten(1)[:, index].reshape(rows.shape)

    def dtype(self, tensor: str) -> torch.dtype:
        return self._base.dtype(tensor)

    def rows(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        return self._held[start - self._first : stop - self._first]


def _sketches(
    base: Checkpoint, tuned: Checkpoint, pair: Pair, axis: int, *, first: int, last: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors that stand for the units of base and tuned, [units, sketch], and their own cosines, [units].

    A random projection to s numbers keeps cosines to about 1/√s (Johnson, Lindenstrauss 1984); short units stand for
    themselves.
    """
    rows, columns = pair.shape[1:] if stacked(pair) else (last - first, math.prod(pair.shape[1:]))
    units, length = (rows, columns) if axis == 0 else (columns, rows)
    if length <= 2 * SKETCH:
        projection = torch.eye(length)
    else:
        projection = torch.randn(length, SKETCH, generator=torch.Generator().manual_seed(0)) / SKETCH**0.5
    sums = {side: torch.zeros(units, projection.shape[1]) for side in ("base", "tuned")}
    squares = {side: torch.zeros(units) for side in sums}
    product = torch.zeros(units)
    start = 0
    for ours, theirs in zip(
        matrix_rows(base, pair.base_name, pair, first, last),
        matrix_rows(tuned, pair.tuned_name, pair, first, last),
        strict=True,
    ):
        here = slice(start, start + len(ours))
        start += len(ours)
        where = here if axis == 0 else slice(None)
        for side, part in (("base", ours), ("tuned", theirs)):
            sums[side][where] += part @ projection if axis == 0 else part.T @ projection[here]
            squares[side][where] += part.square().sum(dim=1 - axis)
        product[where] += (ours * theirs).sum(dim=1 - axis)
    scale = (squares["base"] * squares["tuned"]).sqrt()
    own = torch.where(scale > 0, product / scale.clamp_min(1e-30), 1.0)
    normalise = torch.nn.functional.normalize
    return normalise(sums["base"]), normalise(sums["tuned"]), own


def _nearest(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For unit vectors [n, s] each: each query's nearest key and their cosine, and each key's nearest query."""
    n = len(queries)
    nearest, likeness = torch.empty(n, dtype=torch.long), torch.empty(n)
    back, best = torch.zeros(n, dtype=torch.long), torch.full((n,), -2.0)
    step = max(1, 4 * CHUNK // n)
    for start in range(0, n, step):
        cosines = queries[start : start + step] @ keys.T
        likeness[start : start + step], nearest[start : start + step] = cosines.max(dim=1)
        top, who = cosines.max(dim=0)
        better = top > best
        best[better], back[better] = top[better], who[better] + start
    return nearest, likeness, back
