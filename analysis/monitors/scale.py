"""Scales: what an extreme is measured in, from the extremes of clean prompts."""

from collections.abc import Callable

import numpy as np

from store.errors import InputError

RULES = ("z", "mad", "percentile", "minmax")
EPSILON = 0.01  # of the paper's rule: how far beyond the calibration range a cosine must be
HIGH = 95  # percentile that `percentile` measures in

_ROUNDING = 1e-6  # of a score: what is no larger is rounding of float32

Scale = tuple[np.ndarray, np.ndarray]


def scale_of(rule: str, extremes: np.ndarray) -> Scale:
    """Centre and spread, float64 [c, s] each, of the extremes [n, c, s] of n prompts.

    z           mean and standard deviation
    mad         median, and 1.4826 times the median absolute deviation from it
    percentile  median, and how far above it the 95th percentile lies: of the side that can flag, so that a long tail
                on the other side does not widen it
    minmax      the largest; spread 1: what is beyond it is told in the score's own unit

    A prompt without tokens of a role (−inf) takes no part in that role's scale; where no prompt has any, centre 0 and
    spread 1 leave −inf what it is. Raises InputError as `floored` does.
    """
    known = np.where(np.isneginf(extremes), np.nan, np.asarray(extremes, np.float64))
    empty = np.asarray(np.isnan(known).all(axis=0))
    known[:, empty] = 0.0
    centre, spread = _RULES[rule](known)
    if rule == "minmax":
        return centre, spread
    return centre, floored(spread, centre, empty)


def floored(spread: np.ndarray, centre: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """A twentieth of the median spread at least; 1 where there is nothing to measure.

    A direction that hardly moves over the calibration prompts must not fire on the rounding of its scores. Where most
    do not move there is nothing to measure the others in: raises InputError.
    """
    spread = np.nan_to_num(spread)
    still = spread <= _ROUNDING * np.abs(centre)
    if 2 * still[~empty].sum() > (~empty).sum():
        raise InputError(
            f"{still[~empty].sum()} of the {(~empty).sum()} extremes are the same for the calibration prompts of the "
            "scale, as with copies of a prompt: give prompts that differ"
        )
    return np.where(empty, 1.0, np.maximum(spread, 0.05 * np.median(spread[~empty]) + 1e-12))


def _z(known: np.ndarray) -> Scale:
    return np.nanmean(known, axis=0), np.nanstd(known, axis=0, ddof=1)


def _mad(known: np.ndarray) -> Scale:
    centre = np.nanmedian(known, axis=0)
    return centre, 1.4826 * np.nanmedian(np.abs(known - centre), axis=0)


def _percentile(known: np.ndarray) -> Scale:
    centre = np.nanmedian(known, axis=0)
    return centre, np.nanpercentile(known, HIGH, axis=0) - centre


def _minmax(known: np.ndarray) -> Scale:
    return np.nanmax(known, axis=0), np.ones(known.shape[1:])


_RULES: dict[str, Callable[[np.ndarray], Scale]] = {"z": _z, "mad": _mad, "percentile": _percentile, "minmax": _minmax}
