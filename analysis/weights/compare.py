"""Base against tuned, weight by weight: the stream of differences that everything else is made of."""

from collections.abc import Iterator

import numpy as np
import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.difference import Difference, difference, tensor_rows
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.noise import cheap_edge, simulated_edge
from analysis.weights.pair import Pair, pair_up
from analysis.weights.roles import Role, role_of, stores_conv1d
from analysis.weights.svd import Triples, full_triples, top_triples
from store.digest import sha256
from store.errors import InputError

TOLERANCE = 1e-3  # residual of a triple above the noise edge, as a share of its σ
UNRELATED = 0.3  # cosine between base and tuned below which a matrix did not come from the other
ENOUGH = 8  # matrices after which unrelated weights are refused


def compare(base: Checkpoint, tuned: Checkpoint, *, rank: int, full: bool) -> Iterator[MatrixDelta | VectorDelta]:
    """The difference of every weight, in the order of layers, one at a time in memory.

    Raises InputError where the architectures differ, a weight is not finite, or the weights of the first matrices
    have nothing to do with each other (another base, or another initialisation).
    """
    related: list[bool] = []
    for pair in pair_up(base, tuned):
        for found, cosine in compare_pair(base, tuned, pair, rank=rank, full=full):
            if isinstance(found, MatrixDelta):
                related.append(cosine >= UNRELATED)
            if len(related) >= ENOUGH and not any(related):
                raise InputError(
                    f"the weights of {tuned.name} have nothing to do with those of {base.name} (cosine {cosine:.2f} in "
                    f"{found.name}): give the base that the model was tuned from"
                )
            yield found


def compare_pair(
    base: Checkpoint, tuned: Checkpoint, pair: Pair, *, rank: int, full: bool
) -> Iterator[tuple[MatrixDelta | VectorDelta, float]]:
    """The differences in one tensor, with the cosine between its two sides: one, or one per stacked expert."""
    if len(pair.shape) < 2:
        yield _vector_delta(base, tuned, pair), 1.0
        return
    role = role_of(pair.name, conv1d=stores_conv1d(base.shapes))
    for name, first, last in _matrices(pair):
        pieces = difference(base, tuned, pair, first=first, last=last)
        yield _matrix_delta(tuned, pair, name, first, pieces, role, rank=rank, full=full), pieces.cosine


def _matrices(pair: Pair) -> Iterator[tuple[str, int, int]]:
    """(name, first row, last row) of the matrices in a tensor: one, or one per expert of a stacked tensor."""
    if len(pair.shape) == 3 and ".experts." in pair.name:
        yield from ((f"{pair.name}[{expert}]", expert, expert + 1) for expert in range(pair.rows))
    else:
        yield pair.name, 0, pair.rows


def _vector_delta(base: Checkpoint, tuned: Checkpoint, pair: Pair) -> VectorDelta:
    ours = tensor_rows(base, pair.base_name, 0, pair.rows).double()
    theirs = tensor_rows(tuned, pair.tuned_name, 0, pair.rows).double()
    changed, length = float((theirs - ours).norm()), float(ours.norm())
    return VectorDelta(name=pair.name, frobenius=changed, relative=changed / length if length else None)


def _matrix_delta(
    tuned: Checkpoint,
    pair: Pair,
    name: str,
    first: int,
    pieces: Difference,
    role: Role,
    *,
    rank: int,
    full: bool,
) -> MatrixDelta:
    delta = pieces.delta
    if len(pair.shape) == 3 and ".experts." in pair.name:
        delta = delta.reshape(pair.shape[1:])
    oriented = delta.T if role.transposed else delta  # [outputs, inputs]
    seed = int(sha256(name.encode())[:8], 16)
    notes = list(pair.notes)
    if pieces.delta_square == 0:
        triples, edge = no_triples(oriented.shape), 0.0
        notes.append("unchanged")
    else:
        cheap = cheap_edge(
            pieces.grid,
            square=pieces.tuned_square,
            largest_row=pieces.largest_row,
            largest_column=pieces.largest_column,
            shape=(delta.shape[0], delta.shape[1]),
            moved=pieces.moved,
        )
        triples = full_triples(oriented, rank) if full else _converged(oriented, rank, seed, cheap.estimate)
        edge = cheap.bound
        if len(triples.sigma) and float(triples.sigma[-1]) <= cheap.bound:
            weights = tensor_rows(tuned, pair.tuned_name, first, first + pieces.delta.shape[0]).reshape(delta.shape)
            edge = simulated_edge(weights, delta, pieces.grid, seed=seed)
            if bool((triples.residual > 2 * TOLERANCE * triples.sigma)[triples.sigma > edge].any()):
                triples = _converged(oriented, rank, seed, edge)
        if len(triples.sigma) < min(rank, *oriented.shape):
            notes.append(f"rank {len(triples.sigma)}, below the {rank} asked for")
    return MatrixDelta(
        name=name,
        shape=pair.shape if delta.shape[0] == pair.shape[0] else tuple(delta.shape),
        role=role,
        sigma=triples.sigma.numpy(),
        left=triples.left.numpy(),
        right=triples.right.numpy(),
        residual=triples.residual.numpy(),
        frobenius=pieces.delta_square**0.5,
        relative=(pieces.delta_square / pieces.base_square) ** 0.5 if pieces.base_square else None,
        noise_edge=edge,
        significant=int((triples.sigma > edge).sum()),
        notes=tuple(notes),
        moved_rows=moved_rows(delta) if role.name in ("embedding", "unembedding") else (),
    )


def _converged(matrix: torch.Tensor, rank: int, seed: int, edge: float) -> Triples:
    return top_triples(matrix, rank, seed=seed, edge=edge, tolerance=TOLERANCE)


def no_triples(shape: tuple[int, ...]) -> Triples:
    """The triples of a matrix of zeros."""
    m, n = shape
    empty = torch.empty(0)
    return Triples(sigma=empty, left=torch.empty(m, 0), right=torch.empty(n, 0), residual=empty)


def moved_rows(table: torch.Tensor, count: int = 20) -> tuple[tuple[int, float], ...]:
    """(row, length of its change) of the rows of [vocabulary, width] that moved most; none that did not move."""
    lengths = torch.linalg.vector_norm(table, dim=1).numpy()
    order = np.argsort(-lengths, kind="stable")[:count]
    return tuple((int(row), float(lengths[row])) for row in order if lengths[row] > 0)
