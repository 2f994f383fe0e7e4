"""The edge of noise whose size is not known: what the entries of ΔW make when their signs are drawn anew.

Rounding to the levels of a quantisation, and the holes of pruned weights, are noise of zero mean whose variance
differs from entry to entry and from format to format. Signs drawn anew keep every entry's size and destroy what the
entries say together, so the largest singular value that is left is that of noise with the same variances (Hong,
Sheng, Dobriban, "Selecting the number of components in PCA via random signflips", arXiv 2012.02985). A strong change
raises that edge by its own entries; it is taken out and the edge found again until no further triple comes up
(deflation as by Dobriban and Owen, J. R. Stat. Soc. B 81, 2019).
"""

import torch

from analysis.weights.noise import CHUNK, fluctuation, largest_drawn, worth
from analysis.weights.svd import Triples

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
    generator = torch.Generator().manual_seed(seed)
    scaled = triples.left[:, :above] * triples.sigma[:above]

    def draw(part: torch.Tensor, start: int) -> None:
        rows = slice(start, start + len(part))
        part.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        part.mul_(matrix[rows] - scaled[rows] @ triples.right[:, :above].T)

    flipped = torch.empty(matrix.shape)
    edge = largest_drawn(flipped, draw, seed=seed, small=1 << 19)
    rows, columns = [], torch.zeros(matrix.shape[1])
    for part in torch.split(flipped, max(1, CHUNK // matrix.shape[1])):
        squares = part.square()  # whatever the signs
        rows.append(squares.sum(dim=1))
        columns += squares.sum(dim=0)
    return edge * (1.01 + fluctuation(worth(torch.cat(rows)), worth(columns)))
