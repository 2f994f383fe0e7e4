"""Base against tuned, one weight at a time: what everything else is made of."""

from collections.abc import Iterator

import numpy as np
import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.difference import tensor_rows
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.noise import rounding_noise
from analysis.weights.pair import Pair
from analysis.weights.permutation import matrix_rows, stacked
from analysis.weights.recognise import Recognised, recognise
from analysis.weights.roles import Role, role_of, stores_conv1d
from analysis.weights.signflips import sign_flip_edge
from analysis.weights.svd import Triples, full_triples, top_triples
from store.digest import sha256

TOLERANCE = 3e-3  # residual of a triple above the noise edge, as a share of its σ
ENOUGH = 8  # matrices after which unrelated weights are refused


def compare_pair(
    base: Checkpoint, tuned: Checkpoint, pair: Pair, *, rank: int, full: bool
) -> Iterator[tuple[MatrixDelta | VectorDelta, float]]:
    """The differences in one tensor, with the cosine between its two sides: one, or one per stacked expert."""
    if len(pair.shape) < 2:
        yield _vector_delta(base, tuned, pair), 1.0
        return
    role = role_of(pair.name, conv1d=stores_conv1d(base.shapes))
    for name, first, last in _matrices(pair):
        found = recognise(base, tuned, pair, role, first=first, last=last)
        done = _matrix_delta(tuned, pair, name, first, found, role, rank=rank, full=full), found.pieces.cosine
        del found  # of several models compared side by side, none holds its ΔW while another's is made
        yield done


def _matrices(pair: Pair) -> Iterator[tuple[str, int, int]]:
    """(name, first row, last row) of the matrices in a tensor: one, or one per expert of a stacked tensor."""
    if stacked(pair):
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
    found: Recognised,
    role: Role,
    *,
    rank: int,
    full: bool,
) -> MatrixDelta:
    pieces, delta = found.pieces, found.delta(pair)
    oriented = delta.T if role.transposed else delta  # [outputs, inputs]
    seed = int(sha256(name.encode())[:8], 16)
    notes = [*pair.notes, *found.notes]
    if pieces.delta_square == 0:
        triples, edge = no_triples(oriented.shape), 0.0
        notes.append("unchanged")
    elif found.spread:
        triples, edge = _above_sign_flips(oriented, rank, seed, found.spread, full=full)
    else:
        parts = matrix_rows(tuned, pair.tuned_name, pair, first, first + pieces.delta.shape[0])
        noise = rounding_noise(parts, delta, pieces.grid)
        triples = full_triples(oriented, rank) if full else _converged(oriented, rank, seed, noise.estimate)
        edge = noise.bound
        if len(triples.sigma) and float(triples.sigma[-1]) <= edge:
            edge = noise.simulated_edge(seed=seed)
        triples = _tightened(oriented, triples, rank, seed, edge)
    if pieces.delta_square and len(triples.sigma) < min(rank, *oriented.shape):
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
        significant=0 if found.replaced else int((triples.sigma > edge).sum()),
        notes=tuple(notes),
        moved_rows=moved_rows(delta) if role.name in ("embedding", "unembedding") else (),
    )


def _above_sign_flips(
    matrix: torch.Tensor, rank: int, seed: int, spread: float, *, full: bool
) -> tuple[Triples, float]:
    """Triples and the edge of noise whose size is not known."""
    triples = full_triples(matrix, rank) if full else _converged(matrix, rank, seed, float("inf"))
    edge = sign_flip_edge(matrix, triples, seed=seed, spread=spread)
    return _tightened(matrix, triples, rank, seed, edge), edge


def _tightened(matrix: torch.Tensor, triples: Triples, rank: int, seed: int, edge: float) -> Triples:
    """The triples, those above the edge as exact as they should be: by iteration, or by LAPACK where that fails."""
    if _loose(triples, edge):
        triples = _converged(matrix, rank, seed, edge)
    return full_triples(matrix, rank) if _loose(triples, edge) else triples


def _loose(triples: Triples, edge: float) -> bool:
    """Whether a triple above the edge is less exact than it should be."""
    return bool((triples.residual > 2 * TOLERANCE * triples.sigma)[triples.sigma > edge].any())


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
