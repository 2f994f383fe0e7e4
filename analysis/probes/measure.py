"""What nested cross-validation says: choices that each fold had no part in, and figures for the fold left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.probes.crossfit import CrossFit
from analysis.probes.examples import Examples
from analysis.statistics.bootstrap import RESAMPLES, bootstrap_auroc
from analysis.statistics.conformal import conformal_threshold, groups_needed
from analysis.statistics.interval import Interval
from analysis.statistics.operating_point import OperatingPoint, measure_flags


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The site and penalty that inner folds prefer, for one outer fold. Both are indices."""

    site: int
    penalty: int
    inner_auroc: float


def choose(fits: Sequence[CrossFit], labels: np.ndarray, folds: np.ndarray) -> list[Choice]:
    """For each outer fold the (site, penalty) with the best inner AUROC; of equals the first."""
    inner = [fit.inner(labels, folds) for fit in fits]
    choices = []
    for k in range(int(folds.max()) + 1):
        site = int(np.argmax([values[:, k].max() for values in inner]))
        penalty = int(np.argmax(inner[site][:, k]))
        choices.append(Choice(site=site, penalty=penalty, inner_auroc=float(inner[site][penalty, k])))
    return choices


@dataclass(frozen=True, kw_only=True)
class Measure:
    """AUROC and operating points on folds that had no part in fitting, choosing or setting a threshold.

    AUROC counts pairs within a fold only, as scores of different folds' models are on no common scale; it is
    the folds' average, weighted by their numbers of pairs. Its interval is over groups, given the fitted
    models.
    """

    auroc: Interval
    points: dict[float, OperatingPoint]
    scores: np.ndarray  # float32 [n], of the model without the example's fold


def measure(
    fits: Sequence[CrossFit],
    choices: Sequence[Choice],
    examples: Examples,
    folds: np.ndarray,
    *,
    fprs: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measure:
    """The chosen models on the folds they were chosen without."""
    chosen = [fits[choice.site].scores[choice.penalty] for choice in choices]  # per fold, [n, folds]
    scores = np.empty(len(folds), np.float32)
    for k, own in enumerate(chosen):
        scores[folds == k] = own[folds == k, k]
    interval = bootstrap_auroc(
        scores,
        examples.label,
        examples.group,
        strata=folds,
        resamples=resamples,
        seed=seed,
        noun=examples.noun,
    )
    points = {fpr: _point(chosen, examples, folds, fpr=fpr, resamples=resamples, seed=seed) for fpr in fprs}
    return Measure(auroc=interval, points=points, scores=scores)


def _point(
    chosen: Sequence[np.ndarray], examples: Examples, folds: np.ndarray, *, fpr: float, resamples: int, seed: int
) -> OperatingPoint:
    """Each fold is judged by as many models as there are other folds, each of which sets one model's threshold."""
    count = len(chosen)
    controls = [(folds == j) & ~examples.label for j in range(count)]
    reason = refusal(examples, folds, fpr=fpr)
    if reason:
        return OperatingPoint(fpr=fpr, reason=reason)
    flagged = np.zeros(len(folds))
    for k, own in enumerate(chosen):
        here = folds == k
        for j in range(count):
            if j != k:
                threshold = conformal_threshold(own[controls[j], k], examples.group[controls[j]], fpr=fpr)
                flagged[here] += (own[here, j] > threshold) / (count - 1)
    return measure_flags(
        np.clip(flagged, 0, 1),
        examples.label,
        examples.group,
        fpr=fpr,
        resamples=resamples,
        seed=seed,
        noun=examples.noun,
    )


def refusal(examples: Examples, folds: np.ndarray, *, fpr: float) -> str | None:
    """Why no threshold can be set for `fpr` on any one fold, or None."""
    count = int(folds.max()) + 1
    controls = ~examples.label
    available = [len(np.unique(examples.group[controls & (folds == j)])) for j in range(count)]
    needed = groups_needed(fpr)
    if min(available) >= needed:
        return None
    total = len(np.unique(examples.group[controls]))
    reason = (
        f"a false-positive rate of {100 * fpr:g} % needs {needed} control {examples.noun} in each of {count} folds "
        f"to set the threshold on, about {needed * count} in all; there are {total}"
    )
    return f"{reason}, which bear {100 / min(available):.2g} % at best" if min(available) else reason


def fold_threshold(
    fit: CrossFit, penalty: int, examples: Examples, folds: np.ndarray, *, fold: int, fpr: float
) -> float | None:
    """Threshold of the model without `fold`, set on the control groups of `fold`; None where they are too few."""
    controls = (folds == fold) & ~examples.label
    if len(np.unique(examples.group[controls])) < groups_needed(fpr):
        return None
    return conformal_threshold(fit.scores[penalty, controls, fold], examples.group[controls], fpr=fpr)
