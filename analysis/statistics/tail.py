"""Peaks over threshold: rates finer than 1/n, by extrapolating the tail of the scores. Never a guarantee.

Beyond a high cut the excesses of almost any distribution come close to a generalised Pareto distribution (Pickands,
Ann. Stat. 3 (1975) 119); Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017, section
3, set a detector's threshold by it. How close is not known from the data: the interval here is that of the fit, for a
tail that is what the model says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, stats

from store.errors import InputError

TAIL_GROUPS = 100  # control groups without which no tail is fitted
_SHARE = 0.1  # of the groups: what lies beyond the cut
_EXCESSES = 20  # but no fewer
_FINER = 100  # how much finer than one group a rate may be
_SHAPES = (-0.5, 1.0)  # below, maximum likelihood is not regular (Smith 1985); above, tails have no mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Tail:
    """P(score > cut + y) = rate · (1 + shape · y / scale)^(-1 / shape).

    cut       the score beyond which the tail is fitted
    excesses  float64 [k], ascending, of the k of `groups` scores that are beyond it; rate = k / groups
    """

    cut: float
    excesses: np.ndarray
    groups: int
    shape: float
    scale: float

    @property
    def rate(self) -> float:
        return len(self.excesses) / self.groups

    def threshold(self, fpr: float) -> float:
        """The score that is exceeded with probability `fpr` on average over the tails that the scores allow.

        The average is over shape and log scale, weighted by likelihood (a flat prior). The best fit's own quantile is
        exceeded about twice too often from 500 scores at 0.1 %: a tail that was fitted too light costs more than one
        that was fitted too heavy gains. Raises InputError where `fpr` is above what lies beyond the cut, or
        below 1 / (100 groups).
        """
        if not 0 < fpr < self.rate:
            raise InputError(
                f"a tail fitted to the largest {100 * self.rate:g} % says nothing of a false-positive rate of "
                f"{100 * fpr:g} %: leave --tail pot out"
            )
        finest = 1 / (_FINER * self.groups)
        if fpr < finest:
            raise InputError(
                f"a false-positive rate of {fpr:g} is too far beyond what {self.groups} control groups show: ask for "
                f"{finest:.2g} or more, or give more prompts"
            )

        def surplus(excess: float) -> float:
            return self.beyond(self.cut + excess) - fpr

        far = self.scale
        while surplus(far) > 0:
            far *= 2
        return self.cut + float(optimize.brentq(surplus, 0.0, far))

    def beyond(self, threshold: float) -> float:
        """The probability of a score above `threshold`, which is at least the cut, on average over the tails."""
        shape, scale, weight = self._grid
        return self.rate * float((weight * stats.genpareto.sf(threshold - self.cut, shape, scale=scale)).sum())

    def beyond_interval(self, threshold: float, *, level: float = 0.95) -> tuple[float, float]:
        """What `level` of the tails that the scores allow give for `beyond`, the same tails with the same weights.

        Quantiles over shape, log scale and log rate, the rate weighted by its binomial likelihood. Over samples it
        covers the truth less often than `level` where few groups are known, and whatever is not a Pareto tail by the
        cut: it is the uncertainty of a fit, not a guarantee.
        """
        k, n = len(self.excesses), self.groups
        shape, scale, weight = self._grid
        rates = np.clip(self.rate * np.exp(np.linspace(-3, 3, 21) / np.sqrt(k)), 1e-9, 1 - 1e-9)
        binomial = k * np.log(rates / self.rate) + (n - k) * np.log((1 - rates) / (1 - self.rate))
        tail = stats.genpareto.sf(threshold - self.cut, shape, scale=scale)
        beyond = (tail[..., None] * rates).ravel()
        order = np.argsort(beyond)
        total = np.cumsum((weight[..., None] * np.exp(binomial)).ravel()[order])
        low, high = (beyond[order[np.searchsorted(total, q * total[-1])]] for q in ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shapes [s, 1], scales [1, c] as far as they are of any likelihood, and their weights [s, c], of sum 1."""
        shape = np.unique(np.append(np.linspace(*_SHAPES, 46), self.shape))[:, None]
        scale = self.scale * np.exp(np.linspace(-5, 5, 41) / np.sqrt(len(self.excesses)))[None, :]
        likelihood = _likelihood(self.excesses, shape, scale)
        weight = np.exp(likelihood - likelihood.max())
        return shape, scale, weight / weight.sum()


def fit_tail(maxima: np.ndarray) -> Tail:
    """The tail of scores float [n], one per independent group, by maximum likelihood.

    The largest tenth is taken for the tail, and no fewer than 20. Raises InputError with fewer than 100 groups, where
    most of the largest scores are equal, or where so many groups have no score (−inf) that the cut is none.
    """
    if len(maxima) < TAIL_GROUPS:
        raise InputError(f"a tail is fitted to {TAIL_GROUPS} control groups or more, there are {len(maxima)}")
    ordered = np.sort(np.asarray(maxima, np.float64))
    beyond = max(_EXCESSES, int(_SHARE * len(ordered)))
    cut = float(ordered[-beyond - 1])
    if not np.isfinite(cut):
        raise InputError("too few calibration prompts have tokens of the roles for a tail: leave --tail pot out")
    excesses = ordered[-beyond:] - cut
    excesses = excesses[excesses > 0]
    if len(excesses) < _EXCESSES:
        raise InputError("too many of the largest calibration scores are equal for a tail: leave --tail pot out")
    mean = excesses.mean()

    def contradiction(parameters: np.ndarray) -> float:
        shape, log_scale = parameters
        return -float(_likelihood(excesses, np.array([[shape]]), np.array([[mean * np.exp(log_scale)]]))[0, 0])

    best = optimize.minimize(
        contradiction, x0=np.array([0.05, 0.0]), method="Nelder-Mead", bounds=[_SHAPES, (-5.0, 5.0)]
    )
    shape, log_scale = best.x
    return Tail(
        cut=cut, excesses=excesses, groups=len(ordered), shape=float(shape), scale=float(mean * np.exp(log_scale))
    )


def _likelihood(excesses: np.ndarray, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float64 [s, c]: log-likelihood for shapes [s, 1] and scales [1, c]; −inf where an excess is impossible."""
    near = np.abs(shape) < 1e-6
    safe = np.where(near, 1.0, shape)
    inner = 1 + safe[..., None] * (excesses / scale[..., None])
    possible = near | (inner > 0).all(-1)
    logs = np.log(np.where(inner > 0, inner, 1.0)).sum(-1)
    total = np.where(near, -(excesses.sum() / scale), -(1 + 1 / safe) * logs) - len(excesses) * np.log(scale)
    return np.asarray(np.where(possible, total, -np.inf))
