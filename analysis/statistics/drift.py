"""Whether two sets of rows come from one distribution, with p-values that respect groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from store.errors import InputError

SMALLEST_SHARE = 1e-4


def stability_index(reference: np.ndarray, current: np.ndarray, *, bins: int = 10) -> float:
    """Population stability index of scores over the reference's quantile bins: sum (q - p) log(q / p).

    reference, current: float [n], [m]. Symmetrised Kullback-Leibler divergence (Jeffreys 1946); Siddiqi,
    Credit Risk Scorecards (2006), reads above 0.25 as a shift. Empty bins count as a share of
    `SMALLEST_SHARE`.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = [
        np.maximum(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values), SMALLEST_SHARE)
        for values in (reference, current)
    ]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance between two empirical distribution functions. Smirnov 1939."""
    pooled = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(values), pooled, side="right") / len(values) for values in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def mean_discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel of the median distance.

    first, second: float [n, d], [m, d]. Gretton et al., J. Mach. Learn. Res. 13 (2012) 723, lemma 6. Memory
    grows with the square of the rows: give a sample of a few thousand.
    """
    pooled = np.concatenate([first, second]).astype(float)
    square = np.einsum("nd,nd->n", pooled, pooled)
    distance = np.maximum(square[:, None] + square - 2 * pooled @ pooled.T, 0)
    upper = distance[np.triu_indices(len(pooled), 1)]
    width = float(np.median(upper[upper > 0])) if (upper > 0).any() else 1.0
    kernel = np.exp(-distance / width)
    np.fill_diagonal(kernel, 0)
    n, m = len(first), len(second)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def drift_p(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
    *,
    permutations: int = 199,
    seed: int = 0,
) -> float:
    """P-value of a two-sample statistic that grows with the difference, exchanging whole groups between the samples.

    groups: names of the groups of both samples' rows. A group that is in both samples stays whole, and so
    cannot tell of a difference: samples with the same groups are compared by exchanging each group's two
    halves. Raises InputError where some groups are in both samples and others are not.
    """
    pooled = np.concatenate([first, second])
    origin = np.repeat([False, True], [len(first), len(second)])
    names, codes = np.unique(np.concatenate(groups), return_inverse=True)
    in_both = np.isin(names, groups[0]) & np.isin(names, groups[1])
    if in_both.any() and not in_both.all():
        raise InputError(
            f"{in_both.sum()} of {len(names)} groups are in both samples: compare samples with the same groups or "
            "with none in common"
        )
    generator = np.random.default_rng(seed)
    observed = statistic(first, second)
    group_origin = np.zeros(len(names), bool)
    group_origin[codes[origin]] = True
    reached = 0
    for _ in range(permutations):
        if in_both.all():
            moved = origin ^ (generator.random(len(names)) < 0.5)[codes]
        else:
            moved = generator.permutation(group_origin)[codes]
        reached += statistic(pooled[~moved], pooled[moved]) >= observed
    return (1 + reached) / (1 + permutations)
