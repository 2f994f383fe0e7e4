"""A detector compared with itself where length, style or whatever else goes with the label is held fixed.

Coarsened exact matching: rows are matched where their covariates fall into the same bins, and rows of bins that hold
one class only are left out (Iacus, King and Porro, Political Analysis 20 (2012) 1). Within each stratum that is left,
the covariates hardly tell the classes apart, so what a detector still ranks it ranks by something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.statistics.bootstrap import RESAMPLES, bootstrap_auroc, disjoint_pairs, few_groups
from analysis.statistics.interval import Interval
from analysis.statistics.proportion import clopper_pearson
from analysis.statistics.ranking import auroc
from store.errors import InputError

LEAST_PAIRS = 10  # independent pairs within strata, below which no matched figure is given


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Rows by what they are matched on.

    strata     int64 [n], the stratum of each row; rows of one stratum agree on all covariates
    kept       bool [n], rows of strata that hold both classes
    positives  share of the positive rows that is kept
    negatives  share of the negative rows that is kept
    """

    strata: np.ndarray
    kept: np.ndarray
    positives: float
    negatives: float


def match(
    labels: np.ndarray,
    *,
    exact: Mapping[str, np.ndarray] | None = None,
    coarsened: Mapping[str, np.ndarray] | None = None,
    bins: int = 10,
) -> Matching:
    """Strata of rows that agree on every covariate: on those of `exact` as they are, on `coarsened` ones by their bin.

    labels: bool [n]; exact: name -> int, bool or string [n]; coarsened: name -> number [n], cut at the `bins` quantiles
    of all rows. Raises InputError without covariates, for one of another length, one that is NaN or infinite, fewer
    than two bins, and labels of one class.
    """
    labels = np.asarray(labels, bool)
    covariates = {name: np.asarray(values) for name, values in (exact or {}).items()}
    numbers = {name: np.asarray(values, float) for name, values in (coarsened or {}).items()}
    if not covariates and not numbers:
        raise InputError("there is nothing to match on: name a covariate")
    if labels.all() or not labels.any():
        raise InputError("matching takes rows of both classes: the labels have one")
    if numbers and bins < 2:
        raise InputError(f"{bins} bins hold nothing fixed: give two or more")
    for name, values in [*covariates.items(), *numbers.items()]:
        if values.shape != labels.shape:
            raise InputError(
                f"covariate {name} has the shape {values.shape}, the labels {labels.shape}: one value a row"
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(f"covariate {name} is NaN or infinite for some rows: leave those rows out")
    cut = [_coarsened(values, bins) for values in numbers.values()]
    codes = [np.unique(values, return_inverse=True)[1] for values in [*covariates.values(), *cut]]
    strata = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].ravel()
    positives = np.bincount(strata, labels)
    both = (positives > 0) & (positives < np.bincount(strata))
    kept = both[strata]
    return Matching(
        strata=strata, kept=kept, positives=float(kept[labels].mean()), negatives=float(kept[~labels].mean())
    )


@dataclass(frozen=True, kw_only=True)
class MatchedAuroc:
    """What is left of an AUROC within strata.

    raw        over all rows
    matched    over pairs within a stratum
    positives  share of the positive rows that could be matched: the matched figure speaks of no others
    negatives  share of the negative rows
    strata     how many hold both classes
    residual   AUROC that each coarsened covariate itself still has within strata: 0.5 where the bins are fine enough,
               and what of the matched AUROC may be due to it otherwise
    """

    raw: Interval
    matched: Interval
    positives: float
    negatives: float
    strata: int
    residual: dict[str, float]

    def record(self) -> dict[str, object]:
        """JSON form: raw and matched as intervals' records."""
        return {
            "raw": self.raw.record(),
            "matched": self.matched.record(),
            "positives_matched": self.positives,
            "negatives_matched": self.negatives,
            "strata": self.strata,
            "residual": self.residual,
        }


def matched_auroc(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    exact: Mapping[str, np.ndarray] | None = None,
    coarsened: Mapping[str, np.ndarray] | None = None,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noun: str = "groups",
) -> MatchedAuroc:
    """AUROC over all pairs, and over the pairs of a positive and a negative row that match.

    scores: float [n]; labels: bool [n]; groups: int or string [n]; covariates and bins as in `match`. The matched
    AUROC is the average of the strata's, weighted by their numbers of pairs (`Ranking`; the covariate-adjusted ROC of
    Janes and Pepe, Biometrika 96 (2009) 371, weights by positives instead). Intervals are `bootstrap_auroc`'s with the
    strata as they are, and where fewer than one error is expected over the independent pairs within strata,
    Clopper-Pearson's over those. Raises InputError as `match` does, for scores that are NaN or infinite, and where
    fewer than `LEAST_PAIRS` independent pairs match.
    """
    scores, labels, groups = np.asarray(scores, float), np.asarray(labels, bool), np.asarray(groups)
    matching = match(labels, exact=exact, coarsened=coarsened, bins=bins)
    raw = bootstrap_auroc(scores, labels, groups, level=level, resamples=resamples, seed=seed, noun=noun)
    kept = matching.kept
    strata, own_labels, own_groups = matching.strata[kept], labels[kept], groups[kept]
    pairs = _pairs_within(own_labels, own_groups, strata)
    if pairs < LEAST_PAIRS:
        raise InputError(
            f"{pairs} independent pairs of {noun} match, {LEAST_PAIRS} are needed ({100 * matching.positives:.0f} % of "
            f"positive and {100 * matching.negatives:.0f} % of negative rows match at all): match on less, or coarser"
        )
    matched = bootstrap_auroc(
        scores[kept], own_labels, own_groups, strata=strata, level=level, resamples=resamples, seed=seed, noun=noun
    )
    low, high = matched.low, matched.high
    if min(matched.value, 1 - matched.value) * pairs < 1:
        exact_low, exact_high = clopper_pearson(matched.value * pairs, pairs, level=level)
        low, high = min(low, exact_low), max(high, exact_high)
    return MatchedAuroc(
        raw=raw,
        matched=replace(
            matched,
            low=low,
            high=high,
            caveat=matched.caveat or few_groups(pairs, f"independent pairs of {noun} that match"),
        ),
        positives=matching.positives,
        negatives=matching.negatives,
        strata=len(np.unique(strata)),
        residual={
            name: auroc(np.asarray(values, float)[kept], own_labels, strata=strata)
            for name, values in (coarsened or {}).items()
        },
    )


def _pairs_within(labels: np.ndarray, groups: np.ndarray, strata: np.ndarray) -> int:
    """How many pairs within strata are independent at most: no group twice in a stratum, nor in more pairs over all."""
    if not len(labels):
        return 0
    codes = np.unique(groups, return_inverse=True)[1]
    within = sum(disjoint_pairs(labels[strata == s], codes[strata == s]) for s in np.unique(strata))
    return min(within, disjoint_pairs(labels, codes))


def _coarsened(values: np.ndarray, bins: int) -> np.ndarray:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")
