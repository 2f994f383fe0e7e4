"""Calibration: from the extremes of clean prompts to a monitor with a false-alarm rate that can be stated.

Scale and threshold come from different prompts. Standardising by the prompts that also set the threshold makes
their own scores smaller than those of new prompts, and a nominal 1 % into several; with disjoint prompts the
threshold prompts and any new clean prompt are exchangeable given the scale, and split conformal prediction holds
exactly.
"""

import hashlib
from typing import Any

import numpy as np
from scipy import stats

from analysis.monitors.monitor import RULES, SCORINGS, Monitor
from analysis.statistics.conformal import conformal_threshold, groups_needed
from store.direction import Direction
from store.errors import InputError

SCALE_AT_LEAST = 20  # groups from which centre and spread are taken
EPSILON = 0.01  # of the paper's rule: how far beyond the calibration range a cosine must be


def calibrate(
    directions: list[Direction],
    extremes: np.ndarray,
    groups: np.ndarray,
    *,
    fpr: float = 0.01,
    rule: str = "z",
    scoring: str = "cosine",
    prefix: tuple[int, ...] = (),
) -> Monitor:
    """A monitor from clean prompts.

    extremes  float [n, t, 2] of the n prompts (see `analysis.monitors.monitor`)
    groups    string [n]: prompts of one group are not independent and stay in one half

    Its `calibration` states, for `z`: `fpr`, the marginal bound (a new clean prompt of the same kind is flagged
    with at most that probability, over calibrations) and `fpr_upper_95` (this monitor's own rate is below it with
    95 % confidence; both from the threshold groups); for `minmax` the marginal bound min(1, 2 t / (g + 1)) of g
    groups.

    Raises InputError where there are too few groups for `fpr`, saying how many are needed.
    """
    check_request(groups, fpr=fpr, rule=rule, scoring=scoring)
    extremes = np.asarray(extremes, np.float64)
    if not np.isfinite(extremes).all():
        raise InputError("some calibration prompts have no finite scores: leave them out")
    if rule == "minmax":
        return _minmax(directions, extremes, groups, prefix)
    first, second = _halves(groups, fpr)
    centre = extremes[first].mean(axis=0)
    deviation = extremes[first].std(axis=0, ddof=1)
    # A direction that hardly moves over the calibration prompts must not fire on the rounding of its scores.
    spread = np.maximum(deviation, 0.05 * np.median(deviation) + 1e-12)
    monitor = Monitor(
        directions=tuple(directions),
        scoring=scoring,
        rule=rule,
        prefix=prefix,
        centre=centre,
        spread=spread,
        threshold=0.0,
    )
    scores = monitor.score(extremes[second]).score
    threshold = conformal_threshold(scores, groups[second], fpr=fpr)
    n = len(np.unique(groups[second]))
    above = len(np.unique(groups[second][scores > threshold]))
    return Monitor(
        directions=tuple(directions),
        scoring=scoring,
        rule=rule,
        prefix=prefix,
        centre=centre,
        spread=spread,
        threshold=threshold,
        calibration={
            "fpr": fpr,
            "fpr_upper_95": float(stats.beta.ppf(0.95, above + 1, max(n - above, 1e-9))),
            "n": len(extremes),
            "n_scale": int(first.sum()),
            "n_threshold": int(second.sum()),
            "directions": len(directions),
        },
    )


def _minmax(directions: list[Direction], extremes: np.ndarray, groups: np.ndarray, prefix: tuple[int, ...]) -> Monitor:
    """The paper's rule: beyond the largest or below the smallest cosine of all calibration prompts by `EPSILON`."""
    independent = len(np.unique(groups))
    bound: dict[str, Any] = {
        "fpr": min(1.0, 2 * len(directions) / (independent + 1)),
        "n": len(extremes),
        "groups": independent,
        "directions": len(directions),
    }
    return Monitor(
        directions=tuple(directions),
        scoring="cosine",
        rule="minmax",
        prefix=prefix,
        centre=extremes.max(axis=0),
        spread=np.ones(extremes.shape[1:]),
        threshold=EPSILON,
        calibration=bound,
    )


def check_request(groups: np.ndarray, *, fpr: float, rule: str, scoring: str) -> None:
    """Raises InputError as `calibrate` would: to be asked before the model has run over every prompt."""
    if rule not in RULES or scoring not in SCORINGS:
        raise InputError(f"unknown rule {rule!r} or scoring {scoring!r}: use {', '.join(RULES)}; {', '.join(SCORINGS)}")
    if rule != "minmax":
        _halves(groups, fpr)


def _halves(groups: np.ndarray, fpr: float) -> tuple[np.ndarray, np.ndarray]:
    """Bool [n] twice: prompts for the scale, prompts for the threshold. A group's name, hashed, says where it falls.

    The threshold gets half of the groups, or as many as `fpr` needs where that is more.
    """
    if not 0 < fpr < 1:
        raise InputError(f"a false-positive rate of {fpr} is not between 0 and 1")
    names = sorted(set(groups.tolist()), key=lambda name: hashlib.sha256(str(name).encode()).digest())
    needed = groups_needed(fpr)
    held = max(needed, (len(names) + 1) // 2)
    if len(names) - held < SCALE_AT_LEAST:
        finest = 1 / max(1, len(names) - SCALE_AT_LEAST)
        hint = f", or ask for --fpr {np.ceil(1000 * finest) / 1000:g}" if finest < 0.5 else ""
        raise InputError(
            f"a false-positive rate of {100 * fpr:g} % needs {needed + SCALE_AT_LEAST} independent calibration prompts "
            f"({SCALE_AT_LEAST} for the scale, {needed} for the threshold), there are {len(names)}: give more{hint}"
        )
    second = np.isin(groups, np.array(names[:held], dtype=groups.dtype))
    return ~second, second
