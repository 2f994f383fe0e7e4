"""Base and tuned side by side: which tensors belong together, and the difference of one of them.

One matrix pair is in memory at a time, as ΔW in float32 and a few megabytes of rows of either side.
"""

import math
import re
from dataclasses import dataclass

import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.noise import grid_of
from store.errors import InputError

CHUNK = 1 << 20  # entries of a matrix handled at once: 4 MB in float32
TABLES = re.compile(r"(embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out)\.weight$")
UNEMBEDDINGS = re.compile(r"(lm_head|embed_out)\.weight$")
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|masked_bias|attn\.bias|position_ids)$")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One weight in both models. `rows` are compared: all, or those that both have of a resized vocabulary.

    tuned_name differs from name where one side ties its unembedding to its embedding and the other stores it.
    """

    name: str
    tuned_name: str
    base_name: str
    shape: tuple[int, ...]
    rows: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """ΔW of one matrix and what one pass over both sides tells with it.

    delta           float32 [rows, columns], as stored, trailing axes flattened
    base_square     ‖W_base‖²; tuned_square, product (⟨W_base, W_tuned⟩) and delta_square (‖ΔW‖²) likewise
    moved           share of entries that differ
    grid            coarsest dtype that holds all tuned values
    largest_row     norm of the largest row of W_tuned; largest_column likewise
    """

    delta: torch.Tensor
    base_square: float
    tuned_square: float
    product: float
    delta_square: float
    moved: float
    grid: torch.dtype
    largest_row: float
    largest_column: float

    @property
    def cosine(self) -> float:
        """Cosine between the two matrices: near 1 for a fine-tune, near 0 for unrelated weights."""
        scale = (self.base_square * self.tuned_square) ** 0.5
        return self.product / scale if scale else 1.0


def pair_up(base: Checkpoint, tuned: Checkpoint) -> list[Pair]:
    """The weights of both, in the order of layers. Raises InputError where the two are not the same architecture."""
    ours = {name for name in base.shapes if not BUFFERS.search(name)}
    theirs = {name for name in tuned.shapes if not BUFFERS.search(name)}
    tied_base = _tied(base, theirs - ours)
    tied_tuned = _tied(tuned, ours - theirs)
    ours |= tied_base.keys()
    theirs |= tied_tuned.keys()
    missing, extra = sorted(ours - theirs), sorted(theirs - ours)
    if missing or extra:
        where, name = (tuned.name, missing[0]) if missing else (base.name, extra[0])
        raise InputError(
            f"the two models have different architectures: {where} has no {name} "
            f"({len(missing)} of the base's {len(ours)} weights are missing, {len(extra)} are new): "
            "give the base that the model was tuned from"
        )
    pairs = []
    for name in sorted(ours, key=natural_order):
        pairs.append(_pair(name, base, tied_base.get(name, name), tuned, tied_tuned.get(name, name)))
    return pairs


def _tied(checkpoint: Checkpoint, wanted: set[str]) -> dict[str, str]:
    """Unembeddings that the other side stores and this one ties to its embedding -> that embedding."""
    embedding = tied_embedding(checkpoint)
    return {name: embedding for name in wanted if embedding is not None and UNEMBEDDINGS.search(name)}


def tied_embedding(checkpoint: Checkpoint) -> str | None:
    """The embedding table, which is also the unembedding of a checkpoint that stores no other."""
    names = (name for name in checkpoint.shapes if TABLES.search(name) and not UNEMBEDDINGS.search(name))
    return next(names, None)


def _pair(name: str, base: Checkpoint, base_name: str, tuned: Checkpoint, tuned_name: str) -> Pair:
    ours, theirs = base.shapes[base_name], tuned.shapes[tuned_name]
    rows = ours[0] if ours else 1
    notes: tuple[str, ...] = ()
    if ours != theirs:
        if not (TABLES.search(name) and ours[1:] == theirs[1:]):
            raise InputError(
                f"{name} is {list(ours)} in {base.name} and {list(theirs)} in {tuned.name}: these are different "
                "architectures; give the base that the model was tuned from"
            )
        rows = min(ours[0], theirs[0])
        notes = (f"resized vocabulary {ours[0]} to {theirs[0]}: the {rows} common rows are compared",)
    return Pair(name=name, base_name=base_name, tuned_name=tuned_name, shape=ours, rows=rows, notes=notes)


def natural_order(name: str) -> tuple[object, ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


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
    row_squares = torch.empty(last - first)
    column_squares = torch.zeros(columns, dtype=torch.float64)
    base_square = product = delta_square = 0.0
    moved = 0
    grid: torch.dtype | None = None
    stored = tuned.dtype(pair.tuned_name)
    step = max(1, CHUNK // columns)
    for start in range(first, last, step):
        stop = min(last, start + step)
        ours = tensor_rows(base, pair.base_name, start, stop)
        theirs = tensor_rows(tuned, pair.tuned_name, start, stop)
        part = torch.sub(theirs, ours, out=delta[start - first : stop - first])
        base_square += float(torch.dot(ours.flatten(), ours.flatten()))
        product += float(torch.dot(ours.flatten(), theirs.flatten()))
        delta_square += float(torch.dot(part.flatten(), part.flatten()))
        moved += int(torch.count_nonzero(part))
        if grid != stored:
            here = grid_of(theirs, stored)
            grid = here if grid in (None, here) else stored
        squares = theirs.square_()
        row_squares[start - first : stop - first] = squares.sum(dim=1)
        column_squares += squares.sum(dim=0)
    return Difference(
        delta=delta,
        base_square=base_square,
        tuned_square=float(column_squares.sum()),
        product=product,
        delta_square=delta_square,
        moved=moved / max(1, delta.numel()),
        grid=grid or stored,
        largest_row=float(row_squares.max()) ** 0.5,
        largest_column=float(column_squares.max()) ** 0.5,
    )
