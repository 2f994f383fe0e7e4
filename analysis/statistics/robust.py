"""Location and scatter that a share of arbitrary rows cannot carry off.

The breakdown point of an estimate is the share of rows that, put anywhere, take it anywhere (Donoho and Huber 1983):
one row for the mean, half of them for median and MAD, the trimmed share for the trimmed mean, and nearly half for the
minimum covariance determinant.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.covariance import fast_mcd

from store.errors import InputError

_KEPT = 0.975  # of normal rows, by the reweighting step
_STEPS = 100  # concentration converges in a handful
_FLAT = 1e-9  # of a column's MAD: rows that spread less in some direction lie in a plane


def median_mad(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median, and median absolute deviation from it times 1.4826 (a normal's standard deviation), of each column.

    values: float [n] or [n, d]. Returns float64 [] or [d] each. Bounded whatever fewer than half of the values
    are (Hampel, J. Am. Stat. Assoc. 69 (1974) 383). Raises InputError without values, where one is NaN or infinite, and
    where more than half of a column is a single value: then the deviation is 0, and nothing can be measured in it.
    """
    values = _finite(values)
    spread = np.asarray(stats.median_abs_deviation(values, axis=0, scale="normal"))
    still = np.flatnonzero(spread == 0)
    if len(still):
        where = f" in columns {', '.join(map(str, still[:5]))}" if values.ndim > 1 else ""
        raise InputError(
            f"more than half of the values are equal{where}: there is no spread to measure in, leave those out"
        )
    return np.asarray(np.median(values, axis=0)), spread


def trimmed_mean(values: np.ndarray, *, share: float) -> np.ndarray:
    """Mean of each column without its floor(share n) smallest and as many largest values.

    values: float [n] or [n, d]; share: within [0, 0.5). Returns float64 [] or [d]. Bounded as long as no more than
    floor(share n) values are arbitrary (Huber and Ronchetti, Robust Statistics (2009), 3.3). Raises InputError as
    `median_mad` does, and for a share that leaves nothing.
    """
    if not 0 <= share < 0.5:
        raise InputError(f"a share of {share} cannot be trimmed from each end: give one from 0 to below 0.5")
    return np.asarray(stats.trim_mean(_finite(values), share, axis=0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Where most rows lie, and how they spread.

    location    float64 [d]
    covariance  float64 [d, d], at the scale of a normal distribution's
    kept        bool [n], the rows that both were computed from: those within the 97.5 % ellipsoid
    tolerated   how many of the n rows may be arbitrary without carrying off location or covariance
    """

    location: np.ndarray
    covariance: np.ndarray
    kept: np.ndarray
    tolerated: int

    def distances(self, rows: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distances, float64 [m], of rows [m, d]; normal rows' are chi-squared with d degrees."""
        away = np.linalg.solve(np.linalg.cholesky(self.covariance), (np.asarray(rows, np.float64) - self.location).T)
        return np.asarray(np.einsum("dm,dm->m", away, away))


def covariance_determinant(rows: np.ndarray, *, seed: int = 0) -> Scatter:
    """Minimum covariance determinant: mean and covariance of the half of the rows that lies closest together.

    rows: float [n, d]. Rousseeuw, J. Am. Stat. Assoc. 79 (1984) 871, with h = ceil((n + d + 1) / 2) rows, for which
    n - h arbitrary rows are tolerated; reweighted and made consistent as in Croux and Haesbroeck, J. Multivar. Anal. 71
    (1999) 161. Of two searches the smaller determinant counts, as each misses what the other finds. scikit-learn's
    FAST-MCD (Rousseeuw and Van Driessen 1999) starts from random halves, which all hold some of many outliers and are
    carried off together by a cluster of 30 % of the rows. Concentration from the half that is closest to the median in
    units of the MAD (a start of Hubert, Rousseeuw and Verdonck, J. Comput. Graph. Stat. 21 (2012) 618) keeps the
    promise, as far rows cannot enter that half, but knows no outliers that no single column shows. What is bounded may
    yet be large: a tight cluster of 45 % is the closer half where columns are many and it is not very far.

    Raises InputError as `median_mad` does, with fewer than 5 rows a column (too few for half of them to tell a
    covariance), and where more than half of the rows lie in a hyperplane, as the determinant is 0 there.
    """
    rows = _finite(rows)
    if rows.ndim != 2 or not rows.shape[1]:
        raise InputError(f"a scatter is of rows and columns: there are {rows.ndim} axes of {rows.shape}")
    count, width = rows.shape
    if count < 5 * width:
        raise InputError(
            f"a robust covariance of {width} columns takes {5 * width} rows, there are {count}: give more rows, or "
            "reduce the columns first"
        )
    centre, spread = median_mad(rows)
    # affine equivariant: columns of one scale only keep the arithmetic well conditioned
    scaled = (rows - centre) / spread
    half = -(-(count + width + 1) // 2)
    nearest = np.argsort(np.einsum("nd,nd->n", scaled, scaled), kind="stable")[:half]
    found = [_concentrated(scaled, start) for start in (nearest, _library_half(scaled, seed))]
    _, distances = min(found, key=lambda one: one[0])
    kept = distances <= stats.chi2.ppf(_KEPT, width) * _consistency(half / count, width)
    location = scaled[kept].mean(axis=0)
    covariance = np.atleast_2d(np.cov(scaled[kept], rowvar=False)) * _consistency(_KEPT, width)
    return Scatter(
        location=centre + spread * location,
        covariance=covariance * np.outer(spread, spread),
        kept=kept,
        tolerated=count - half,
    )


def _concentrated(rows: np.ndarray, chosen: np.ndarray) -> tuple[float, np.ndarray]:
    """Log determinant of a half that is its own nearest half, by C-steps from `chosen` on, and squared distances to it.

    Each step lowers the determinant or ends: Rousseeuw and Van Driessen, Technometrics 41 (1999) 212, theorem 1.
    """
    size, previous = len(chosen), np.inf
    for _ in range(_STEPS):
        location = rows[chosen].mean(axis=0)
        # singular values of the rows: those of the covariance would be squares, lost beside a far row's
        _, lengths, axes = np.linalg.svd((rows[chosen] - location) / np.sqrt(size), full_matrices=False)
        if lengths[-1] < _FLAT:
            raise InputError(
                f"{size} of {len(rows)} rows lie in a plane of fewer than {rows.shape[1]} dimensions, so their "
                "covariance has no inverse: leave out columns that follow from others, or rows that are copies"
            )
        determinant = 2 * float(np.log(lengths).sum())
        away = (rows - location) @ axes.T / lengths
        distances = np.einsum("nd,nd->n", away, away)
        if determinant >= previous - 1e-12:
            break
        previous = determinant
        chosen = np.argsort(distances, kind="stable")[:size]
    return determinant, distances


def _library_half(rows: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        # of determinants that are 0 or rise by rounding: `_concentrated` checks both
        warnings.simplefilter("ignore")
        return np.flatnonzero(fast_mcd(rows, random_state=seed)[2])


def _consistency(share: float, width: int) -> float:
    """What makes the covariance of a normal's central `share` that of the whole."""
    return float(share / stats.chi2.cdf(stats.chi2.ppf(share, width), width + 2))


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        raise InputError("there are no values to find the middle of")
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise InputError(f"{bad} of {values.size} values are NaN or infinite: leave those rows out")
    return values
