"""Count, mean, variance and covariance by label value and fold, merged without ever leaving float64.

Two sets' moments become those of their union by the pairwise update of Chan, Golub and LeVeque, "Updating formulae
and a pairwise algorithm for computing sample variances", Stanford STAN-CS-79-773 (1979), section 2: squares are
of deviations from each set's own mean, so that massive activations (a mean a thousand times the spread) cancel
nothing. A fold held out is the merge of the others, never a subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np

from store.errors import InputError
from store.model_ref import ModelRef
from store.store import Store

PREFIX, COUNT_PREFIX, COVARIANCE_PREFIX = "moments.", "moments-count.", "moments-covariance."


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Moments of the rows of one site, for each of L label values and F folds.

    label       the label's name, and `values` its L values, in order
    count       int64 [L, F], rows
    mean        float64 [L, F, width]; NaN where there is no row
    variance    float64 [L, F, width], of the population: the mean square of deviations; NaN where there is no row
    covariance  float64 [L, F, width, width], likewise; None where second moments were not asked for
    """

    label: str
    values: tuple[Any, ...]
    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray | None = None

    # What is not finite stays so: it was told when it was harvested.
    @np.errstate(invalid="ignore")
    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows, with covariances where both have them.

        Raises InputError where they are of other labels, folds or width.
        """
        if (self.label, self.values, self.mean.shape) != (other.label, other.values, other.mean.shape):
            raise InputError(
                f"moments of {self.label!r} {self.mean.shape} and of {other.label!r} {other.mean.shape} do not merge: "
                "they need the same label values, folds and width"
            )
        pooled = partial(_pooled, self.count, other.count)
        both = (self.count > 0) & (other.count > 0)
        step = np.where(both[..., None], other.mean - self.mean, 0.0)
        total = np.maximum(self.count + other.count, 1)
        between = ((self.count / total) * (other.count / total))[..., None]
        covariance = None
        if self.covariance is not None and other.covariance is not None:
            outer = step[..., :, None] * step[..., None, :]
            covariance = pooled(self.covariance, other.covariance) + between[..., None] * outer
        return replace(
            self,
            count=self.count + other.count,
            mean=pooled(self.mean, other.mean),
            variance=pooled(self.variance, other.variance) + between * step**2,
            covariance=covariance,
        )

    def over_folds(self, folds: Sequence[int] | None = None) -> Moments:
        """Moments with one fold: that of all folds, or of those given, together."""
        chosen = range(self.count.shape[1]) if folds is None else folds
        return reduce(Moments.merge, [self._fold(fold) for fold in chosen])

    def without_fold(self, fold: int) -> Moments:
        """Moments with one fold, that of all the others together: what is fitted where `fold` is held out."""
        return self.over_folds([other for other in range(self.count.shape[1]) if other != fold])

    def _fold(self, fold: int) -> Moments:
        part = np.s_[:, fold : fold + 1]
        covariance = None if self.covariance is None else self.covariance[part]
        return replace(
            self, count=self.count[part], mean=self.mean[part], variance=self.variance[part], covariance=covariance
        )


def _pooled(count: np.ndarray, other_count: np.ndarray, values: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Means of two sets' values weighted by their counts [L, F]. A set without rows has NaN there and takes no part."""
    counts = [part.reshape(*part.shape, *[1] * (values.ndim - 2)) for part in (count, other_count)]
    total = np.maximum(counts[0] + counts[1], 1)
    weighted = counts[0] / total * values + counts[1] / total * other
    return np.where(counts[1] == 0, values, np.where(counts[0] == 0, other, weighted))


def read_moments(store: Store, model: ModelRef | str, name: str, *, second_moments: bool = False) -> Moments:
    """The moments of a column such as `moments.resid_post.15`, merged over all units of the store, in their order.

    Holds the moments of two units at a time. Raises InputError for a column that is not there or is none of moments,
    and for `second_moments` that were not harvested; IncompleteError where units are missing.
    """
    settings = next((c.column(name).settings for c in store.captures if name in c.names), {})
    if not name.startswith(PREFIX) and settings:
        raise InputError(f"column {name!r} holds no moments: those of a site are called {PREFIX}SITE")
    site = name.removeprefix(PREFIX)
    names = [name, COUNT_PREFIX + site, *([COVARIANCE_PREFIX + site] if second_moments else [])]
    columns = [store.column(model, part).per_unit() for part in names]
    units = (
        Moments(
            label=settings["label"],
            values=tuple(settings["values"]),
            count=count,
            mean=values[:, :, 0],
            variance=values[:, :, 1],
            covariance=covariance[0].reshape(*count.shape, -1, values.shape[-1]) if covariance else None,
        )
        for values, count, *covariance in zip(*columns, strict=True)
    )
    return reduce(Moments.merge, units)
