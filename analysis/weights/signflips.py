"""The edge of noise whose size is not known: what the entries of ΔW make when their signs are drawn anew.

Rounding to the levels of a quantisation, and the holes of pruned weights, are noise of zero mean whose variance
differs from entry to entry and from format to format. Signs drawn anew keep every entry's size and destroy what the
entries say together, so the largest singular value that is left is that of noise with the same variances (Hong,
Sheng, Dobriban, "Selecting the number of components in PCA via random signflips", arXiv 2012.02985). A strong change
raises that edge by its own entries; it is taken out and the edge found again until no further triple comes up
(deflation as by Dobriban and Owen, J. R. Stat. Soc. B 81, 2019).
"""

import torch

from analysis.weights.noise import fluctuation, worth
from analysis.weights.svd import Triples, top_triples

CHUNK = 1 << 18  # entries handled at once
ROUNDS = 4


def sign_flip_edge(matrix: torch.Tensor, triples: Triples, *, seed: int, spread: float = 1.0) -> float:
    """The largest singular value that noise of the entries' sizes makes in `matrix` (float32 [m, n]).

    `triples` are its leading ones; noise whose entries are not independent is at most `spread` times as large. One
    copy of the matrix is held beside it. Small matrices, whose edge fluctuates, get several draws, of which the
    largest counts.
    """
    edge, above = 0.0, 0
    for _ in range(ROUNDS):
        edge = spread * _flipped_edge(matrix, triples, above, seed)
        now = int((triples.sigma > edge).sum())
        if now <= above:
            break
        above = now
    return edge


def _flipped_edge(matrix: torch.Tensor, triples: Triples, above: int, seed: int) -> float:
    m, n = matrix.shape
    generator = torch.Generator().manual_seed(seed)
    scaled = triples.left[:, :above] * triples.sigma[:above]
    flipped = torch.empty(m, n)
    step = max(1, CHUNK // n)
    edge = 0.0
    rows, columns = torch.zeros(m), torch.zeros(n)
    for draw in range(min(8, 1 + (1 << 19) // (m * n))):
        for start in range(0, m, step):
            part = flipped[start : start + step]
            part.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
            part.mul_(matrix[start : start + step] - scaled[start : start + step] @ triples.right[:, :above].T)
            if draw == 0:
                squares = part.square()
                rows[start : start + step] = squares.sum(dim=1)
                columns += squares.sum(dim=0)
        top = top_triples(flipped, 1, seed=seed, tolerance=0.03, sweeps=24).sigma
        edge = max(edge, float(top[0]) if len(top) else 0.0)
    return edge * (1.01 + fluctuation(worth(rows), worth(columns)))
