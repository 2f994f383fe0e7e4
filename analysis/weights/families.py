"""Which fine-tunes of one base learned alike: subspaces compared by their principal angles.

Each model has, per matrix, the orthonormal vectors of its significant triples on the side that lives in the residual
stream. Two subspaces with bases Q₁ [d, r₁] and Q₂ [d, r₂] have the principal angles θ whose cosines are the singular
values of Q₁ᵀQ₂ (Björck and Golub, Math. Comp. 27, 1973); Σ cos²θ = ‖Q₁ᵀQ₂‖²_F is the projection metric's inner product
(Edelman, Arias, Smith, SIAM J. Matrix Anal. 20, 1998). Signs and the order of vectors do not enter.

Uniformly random subspaces share Σ cos²θ = r₁r₂/d on average, so the share ‖Q₁ᵀQ₂‖²_F / min(r₁, r₂) is corrected to be 0
for these in expectation and 1 where one subspace lies in the other. The similarity of two models is its mean over the
matrices that both changed, each weighted by √(e₁e₂), e being the share of a model's significant energy Σσ² in that
matrix: a matrix counts as far as both models spent their change on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import subspace_angles
from scipy.spatial.distance import squareform
from scipy.stats import gamma

from store.direction import Direction

ALIKE = 0.1  # mean similarity from which models are one family


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """Significant vectors of one matrix: float32 [width, r], orthonormal, and their σ [r]."""

    vectors: np.ndarray
    sigma: np.ndarray

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike two models are.

    similarity  0 for unrelated models in expectation, 1 where the subspaces of one lie in those of the other; slightly
                negative values are chance. 0 where no matrix was changed by both
    p           chance of at least this similarity between uniformly random subspaces of the same sizes; 1 without a
                matrix in common. Unrelated fine-tunes of one base share more than random subspaces do, for they
                share its gradients' preferred directions: a small p says not random, similarity says how alike
    common      Σ √(e₁e₂) over the matrices that both changed, in [0, 1]: whether they changed the same places
    matrix      the matrix that counts most; smallest_angle, largest_angle  principal angles there, degrees
    """

    similarity: float
    p: float
    common: float
    matrix: str | None = None
    smallest_angle: float | None = None
    largest_angle: float | None = None


@dataclass(frozen=True, kw_only=True)
class Families:
    """Models of one base, compared in pairs.

    likeness  (i, j) -> likeness for i < j
    labels    family of each model, from 0, in the order in which the models come
    nearest   for each model, the other that it is most alike
    """

    likeness: Mapping[tuple[int, int], Likeness]
    labels: tuple[int, ...]

    def of(self, one: int, other: int) -> Likeness:
        return self.likeness[min(one, other), max(one, other)]

    @cached_property
    def nearest(self) -> tuple[int, ...]:
        count = len(self.labels)
        return tuple(
            max((j for j in range(count) if j != i), key=lambda j: self.of(i, j).similarity) for i in range(count)
        )


def subspaces(directions: Sequence[Direction]) -> dict[str, Subspace]:
    """The significant directions of a weight difference, by matrix."""
    found: dict[str, list[Direction]] = {}
    for direction in directions:
        if direction.source["significant"]:
            found.setdefault(direction.source["matrix"], []).append(direction)
    return {
        matrix: Subspace(
            vectors=np.stack([direction.vector for direction in group], axis=1),
            sigma=np.array([direction.source["sigma"] for direction in group]),
        )
        for matrix, group in found.items()
    }


def find_families(models: Sequence[Mapping[str, Subspace]], alike: float = ALIKE) -> Families:
    """Compares all pairs of at least two models and clusters them.

    Families are the clusters of average linkage (UPGMA; Sokal and Michener 1958) on 1 − similarity, cut where the mean
    similarity between two clusters is under `alike`.
    """
    count = len(models)
    likeness = {(i, j): compare_models(models[i], models[j]) for i in range(count) for j in range(i + 1, count)}
    distance = np.zeros((count, count))
    for (i, j), pair in likeness.items():
        distance[i, j] = distance[j, i] = 1 - min(1.0, max(0.0, pair.similarity))
    clusters = fcluster(linkage(squareform(distance), "average"), t=1 - alike, criterion="distance")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters.tolist()))}
    return Families(likeness=likeness, labels=tuple(numbers[cluster] for cluster in clusters.tolist()))


def compare_models(one: Mapping[str, Subspace], other: Mapping[str, Subspace]) -> Likeness:
    """The likeness of two models of one base.

    The p-value is that of a gamma variable with the mean and variance that the uncorrected weighted share has between
    uniformly random subspaces (Satterthwaite 1946; exact for one vector each up to terms of 1/d).
    """
    shares = [_energies(one), _energies(other)]
    # a subspace that is the whole space is like any other
    common = [m for m in one if m in other and max(one[m].dimension, other[m].dimension) < len(one[m].vectors)]
    weight = {matrix: (shares[0][matrix] * shares[1][matrix]) ** 0.5 for matrix in common}
    total = sum(weight.values())
    if not total:
        return Likeness(similarity=0.0, p=1.0, common=0.0)
    similarity = shared = mean = variance = 0.0
    for matrix in common:
        a, b = one[matrix].vectors.astype(np.float64), other[matrix].vectors.astype(np.float64)
        d, (r, s) = len(a), (a.shape[1], b.shape[1])
        overlap, expected = float(np.sum((a.T @ b) ** 2)) / min(r, s), max(r, s) / d
        w = weight[matrix] / total
        similarity += w * (overlap - expected) / (1 - expected)
        shared += w * overlap
        mean += w * expected
        variance += w**2 * _variance(d, r, s) / min(r, s) ** 2
    p = float(gamma.sf(shared, mean**2 / variance, scale=variance / mean)) if variance else 1.0
    most = max(common, key=weight.__getitem__)
    angles = np.degrees(subspace_angles(one[most].vectors.astype(np.float64), other[most].vectors.astype(np.float64)))
    return Likeness(
        similarity=similarity,
        p=p,
        common=min(1.0, total),
        matrix=most,
        smallest_angle=float(angles.min()),
        largest_angle=float(angles.max()),
    )


def _energies(model: Mapping[str, Subspace]) -> dict[str, float]:
    """Share of a model's significant energy in each matrix."""
    squares = {matrix: float(np.sum(space.sigma.astype(np.float64) ** 2)) for matrix, space in model.items()}
    total = sum(squares.values())
    return {matrix: square / total for matrix, square in squares.items()} if total else squares


def _variance(d: int, r: int, s: int) -> float:
    """Variance of ‖Q₁ᵀQ₂‖²_F between uniformly random subspaces of dimension r and s in d.

    2 r s (d − r)(d − s) / (d² (d − 1)(d + 2)), from the fourth moments of orthogonal matrices (Collins and Śniady,
    Commun. Math. Phys. 264, 2006); for r = s = 1 that of a squared cosine, Beta(1/2, (d − 1)/2).
    """
    return 2.0 * r * s * (d - r) * (d - s) / (d**2 * (d - 1) * (d + 2))
