"""What else than training may have made one matrix differ from another: recognised, named, and taken out first.

Every finding is a note that starts with its kind, a colon apart from the details. What the notes of all matrices say
about the pair is in `pair_notes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.difference import Difference, difference
from analysis.weights.grids import Grid, find_grid
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.noise import grid_of
from analysis.weights.pair import Pair
from analysis.weights.permutation import (
    Reordered,
    find_order,
    hidden_axis,
    matrix_rows,
    may_be_permuted,
    order_note,
    stacked,
)
from analysis.weights.pruning import COARSE, LARGE, find_pruning, leave_out, sampled_share
from analysis.weights.roles import Role

UNRELATED = 0.3  # cosine between base and tuned below which a matrix did not come from the other
FINEST = 0.003  # root mean square of moved entries, as a share of that of the weights, below any grid's error
SAMPLE = 128  # neighbouring rows that are looked at


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """One matrix's difference without what was recognised.

    pieces    the difference, units in the tuned model's order, pruned entries left out
    notes     what was recognised
    spread    0 where the only noise is the rounding of the stored dtype; otherwise the edge is found by sign flips,
              times this
    replaced  whether the base's matrix is gone: nothing in the difference is a change of it
    """

    pieces: Difference
    notes: tuple[str, ...] = ()
    spread: float = 0.0
    replaced: bool = False

    def delta(self, pair: Pair) -> torch.Tensor:
        """ΔW as a matrix, float32 [rows, columns] as stored."""
        return _matrix(self.pieces.delta, pair)


def _matrix(delta: torch.Tensor, pair: Pair) -> torch.Tensor:
    return delta.reshape(pair.shape[1:]) if stacked(pair) else delta


def recognise(base: Checkpoint, tuned: Checkpoint, pair: Pair, role: Role, *, first: int, last: int) -> Recognised:
    """The difference of rows [first, last) of a pair, with what is recognised in it.

    Both sides are read once, and a few rows of each (of a stacked expert, all); again only where there is a suspicion.
    """
    # The base first, and before the difference: a GGUF tensor is unpacked whole and kept until its last row is read.
    where, ours = _sample(base, pair.base_name, pair, first, last)
    pieces = difference(base, tuned, pair, first=first, last=last)
    axis = hidden_axis(role)
    order = None
    if axis is not None and may_be_permuted(_matrix(pieces.delta, pair), pieces.base_square, axis):
        order = find_order(base, tuned, pair, axis, first=first, last=last)
    if axis is not None and order is not None:
        del pieces  # two matrices are in memory at a time, here as everywhere
        held = Reordered(base, pair, axis, order, first=first, last=last)
        pieces = difference(held, tuned, pair, first=first, last=last)
        del held
        found = Recognised(pieces=pieces, notes=(order_note(order, role),))
    else:
        found = _unless_replaced(pieces)
    if pieces.delta_square == 0:
        return found
    coarse = _may_hold_a_grid(pieces)
    del pieces
    where, theirs = _sample(tuned, pair.tuned_name, pair, first, last)
    grids = (find_grid(*ours), find_grid(*theirs)) if coarse else (None, None)
    if any(grids):
        found = replace(found, notes=(*found.notes, _grid_note(*grids)), spread=1.0)
    return _without_pruned(found, tuned, pair, role, theirs[0], where, grids, first=first, last=last)


def _unless_replaced(pieces: Difference) -> Recognised:
    """The difference; of a matrix that shares nothing with the base's, so named."""
    # The cosine alone would also accuse a change much larger than the weights, which leaves them in place.
    kept = pieces.product / pieces.base_square if pieces.base_square else 1.0
    if pieces.tuned_square == 0 or pieces.cosine >= UNRELATED or kept >= UNRELATED:
        return Recognised(pieces=pieces)
    note = f"replaced: cosine {pieces.cosine:.2f} with the base's matrix; its difference is no change of it"
    return Recognised(pieces=pieces, notes=(note,), replaced=True)


def _without_pruned(
    found: Recognised,
    tuned: Checkpoint,
    pair: Pair,
    role: Role,
    sample: np.ndarray,
    where: slice,
    grids: tuple[Grid | None, Grid | None],
    *,
    first: int,
    last: int,
) -> Recognised:
    """Without the entries that either side has set to zero."""
    delta = found.delta(pair)
    shares = sampled_share(sample, delta[where].numpy())
    axis = hidden_axis(role)
    whole = axis is not None and may_be_permuted(delta, found.pieces.base_square, axis)
    for side, share, grid in zip(("tuned", "base"), shares, reversed(grids), strict=True):
        large = COARSE if grid is not None else LARGE
        if share < large / 2 and not whole:
            continue
        pruning = find_pruning(tuned, pair, delta, side, first=first, last=last, large=large)
        if pruning is None:
            continue
        leave_out(tuned, pair, delta, side, first=first, last=last)
        found = replace(
            found,
            pieces=replace(
                found.pieces,
                delta_square=float(torch.linalg.vector_norm(delta)) ** 2,
                moved=int(torch.count_nonzero(delta)) / delta.numel(),
            ),
            notes=(*found.notes, pruning.note),
            spread=max(found.spread, pruning.spread if pruning.scattered >= large else 0.0),
        )
    return found


def _sample(
    checkpoint: Checkpoint, tensor: str, pair: Pair, first: int, last: int
) -> tuple[slice, tuple[np.ndarray, float]]:
    """Rows in the middle of a matrix, from a multiple of their count on: where, and float32 values with their eps."""
    if stacked(pair):
        rows = slice(0, min(SAMPLE, pair.shape[1]))
        values = next(matrix_rows(checkpoint, tensor, pair, first, last))[rows]
    else:
        start = (last - first) // 2 // SAMPLE * SAMPLE
        rows = slice(start, min(start + SAMPLE, last - first))
        parts = matrix_rows(checkpoint, tensor, pair, first + rows.start, first + rows.stop)
        values = torch.cat(list(parts))
    return rows, (values.numpy(), torch.finfo(grid_of(values, checkpoint.dtype(tensor))).eps)


def _may_hold_a_grid(pieces: Difference) -> bool:
    """Whether entries moved by as much as codes of 8 bits or fewer would move them.

    The step of such codes is 2/255 of the largest weight of a group at least, which is twice the root mean square or
    more, and their error 0.29 steps: 0.0045 of the root mean square of the weights. What moved by less, as in a model
    trained from the very values of a quantised base, holds nothing of a grid.
    """
    moved = max(pieces.moved, 1 / pieces.delta.numel()) * pieces.delta.numel()
    return (pieces.delta_square / moved) ** 0.5 > FINEST * (pieces.base_square / pieces.delta.numel()) ** 0.5


def _grid_note(base: Grid | None, tuned: Grid | None) -> str:
    if base is None:
        return f"re-quantised: {tuned}"
    if tuned is None:
        return f"base quantised: {base}"
    return f"quantised on both sides: {tuned}" + (f" (base: {base})" if str(base) != str(tuned) else "")


def pair_notes(matrices: Sequence[MatrixDelta], vectors: Sequence[VectorDelta]) -> tuple[str, ...]:
    """What was recognised about the pair as a whole: each kind of note with how many matrices it is about.

    `identical` and `rounding only` are said of pairs in which nothing else was recognised.
    """
    of_interest = [note for m in matrices for note in m.notes if not note.startswith(("unchanged", "rank ", "resized"))]
    kinds = dict.fromkeys(note.split(":")[0] for note in of_interest)
    counts = {kind: sum(any(n.split(":")[0] == kind for n in m.notes) for m in matrices) for kind in kinds}
    details = {kind: next(n for n in of_interest if n.split(":")[0] == kind).partition(": ")[2] for kind in kinds}
    notes = [f"{kind}: {count} of {len(matrices)} matrices ({details[kind]})" for kind, count in counts.items()]
    if not kinds and all(m.frobenius == 0 for m in matrices) and all(v.frobenius == 0 for v in vectors):
        return ("identical: the two models have the same weights",)
    if not any(m.significant for m in matrices):
        what = "what is named here and the rounding" if kinds else "the rounding"
        notes.append(f"rounding only: no matrix changed by more than {what} of its weights")
    return tuple(notes)
