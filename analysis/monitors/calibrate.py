"""Calibration: from the extremes of clean prompts to a monitor with a false-alarm rate that can be stated.

Scale and threshold come from different prompts. Standardising by the prompts that also set the threshold makes
their own scores smaller than those of new prompts, and a nominal 1 % into several; with disjoint prompts the
threshold prompts and any new clean prompt are exchangeable given the scale, and split conformal prediction holds
exactly. All directions, sides and roles are counted: the threshold is on the largest of them.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.monitors.monitor import Monitor
from analysis.monitors.scale import EPSILON, RULES, scale_of
from analysis.sinks.scoring import Scorer
from analysis.statistics.conformal import conformal_threshold, groups_needed
from analysis.statistics.tail import TAIL_GROUPS, fit_tail
from analysis.statistics.tolerance import group_maxima, tolerance_groups_needed, tolerance_threshold
from store.errors import InputError

SCALE_AT_LEAST = 20  # groups from which centre and spread are taken
GUARANTEES = ("marginal", "conditional")
TAILS = ("none", "pot")


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """How a monitor's scale and threshold are found.

    rule       the scale, see `analysis.monitors.scale`; `minmax` is the paper's whole rule, without a threshold of rate
    fpr        the false-positive rate asked for; of what, `guarantee` and `tail` say
    guarantee  `marginal`: a prompt drawn from a new clean group is flagged with probability `fpr` at most, on average
               over calibrations, each group weighing the same; `conditional`: with 95 % confidence this very monitor
               flags any prompt of at most a share `fpr` of clean groups
    tail       `pot`: the threshold is extrapolated from the groups' largest scores (peaks over threshold), for a share
               `fpr` of clean groups finer than they can show; no guarantee

    Raises InputError for an unknown word, a rate that is none, or what does not go together.
    """

    rule: str = "z"
    fpr: float = 0.01
    guarantee: str = "marginal"
    tail: str = "none"

    def __post_init__(self) -> None:
        for name, word, known in (
            ("rule", self.rule, RULES),
            ("guarantee", self.guarantee, GUARANTEES),
            ("tail", self.tail, TAILS),
        ):
            if word not in known:
                raise InputError(f"unknown {name} {word!r}: use {', '.join(known)}")
        if not 0 < self.fpr < 1:
            raise InputError(f"a false-positive rate of {self.fpr} is not between 0 and 1")
        if self.rule == "minmax" and (self.guarantee, self.tail) != ("marginal", "none"):
            raise InputError("rule minmax has the calibration range for a threshold: leave --guarantee and --tail out")
        if self.tail == "pot" and self.guarantee == "conditional":
            raise InputError("an extrapolated tail guarantees nothing: leave --tail pot or --guarantee conditional out")

    @property
    def groups_needed(self) -> int:
        """Independent groups that the threshold takes; 1 for the paper's rule."""
        if self.rule == "minmax":
            return 1
        if self.tail == "pot":
            return TAIL_GROUPS
        return tolerance_groups_needed(self.fpr) if self.guarantee == "conditional" else groups_needed(self.fpr)

    def halves(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bool [n] twice: prompts for the scale, prompts for the threshold; all for both with the paper's rule.

        A group's name, hashed, says where it falls. The threshold gets half of the groups, or as many as `fpr` needs
        where that is more. Raises InputError where there are too few groups, saying how many are needed.
        """
        if self.rule == "minmax":
            return np.ones(len(groups), bool), np.ones(len(groups), bool)
        names = sorted(set(groups.tolist()), key=group_hash)
        needed = self.groups_needed
        held = max(needed, (len(names) + 1) // 2)
        if len(names) - held < SCALE_AT_LEAST:
            raise InputError(self._too_few(len(names)))
        second = np.isin(groups, np.array(names[:held], dtype=groups.dtype))
        return ~second, second

    def threshold(self, scores: np.ndarray, groups: np.ndarray) -> tuple[float, dict[str, Any]]:
        """The threshold on standardised scores [n] of prompts that set no scale, and what is known of its rate.

        `fpr`; `fpr_upper_95`, below which with 95 % confidence the share of clean groups is that have any prompt above
        this very threshold, from the groups alone; with a tail, `extrapolated`: the fitted share and its interval,
        which hold if the tail goes on as it was fitted. Raises InputError where no finite score would do.
        """
        known: dict[str, Any] = {"fpr": self.fpr}
        if self.tail == "pot":
            tail = fit_tail(group_maxima(scores, groups))
            threshold = tail.threshold(self.fpr)
            low, high = tail.beyond_interval(threshold)
            known["extrapolated"] = {
                "fpr": tail.beyond(threshold),
                "low": low,
                "high": high,
                "shape": tail.shape,
                "scale": tail.scale,
                "cut": tail.cut,
                "excesses": len(tail.excesses),
            }
        elif self.guarantee == "conditional":
            threshold = tolerance_threshold(scores, groups, fpr=self.fpr)
        else:
            threshold = conformal_threshold(scores, groups, fpr=self.fpr)
        if not np.isfinite(threshold):
            raise InputError(
                f"too few of the calibration prompts for the threshold have tokens of the roles to tell "
                f"{100 * self.fpr:g} % false positives: give more with such tokens, or a larger --fpr"
            )
        n = len(np.unique(groups))
        above = len(np.unique(groups[scores > threshold]))
        known["fpr_upper_95"] = float(stats.beta.ppf(0.95, above + 1, max(n - above, 1e-9)))
        known["groups"] = n
        return threshold, known

    def _too_few(self, there: int) -> str:
        needed, rest = self.groups_needed, there - SCALE_AT_LEAST
        hint = ""
        if self.tail == "none" and rest > 1:
            # The finest rate that the groups at hand bear, rounded up so that it does.
            finest = 1 - 0.05 ** (1 / rest) if self.guarantee == "conditional" else 1 / rest
            finest = np.ceil(1000 * finest) / 1000
            hint = f", or ask for --fpr {finest:g}" if finest < 0.5 else ""
        what = f"a false-positive rate of {100 * self.fpr:g} %"
        what += " with 95 % confidence" if self.guarantee == "conditional" else ""
        what += " from a fitted tail" if self.tail == "pot" else ""
        return (
            f"{what} needs {needed + SCALE_AT_LEAST} independent calibration prompts "
            f"({SCALE_AT_LEAST} for the scale, {needed} for the threshold), there are {there}: give more{hint}"
        )


def calibrate(
    scorer: Scorer, extremes: np.ndarray, groups: np.ndarray, *, calibrator: Calibrator | None = None
) -> Monitor:
    """A monitor from clean prompts.

    extremes  float [n, c, 2 r] of the n prompts, as `ExtremesSink` gives them
    groups    string [n]: prompts of one group are not independent and stay in one half

    Its `calibration` says what it rests on (see `Calibrator.threshold`), and how many directions, and extremes of
    them, the rate counts. For `minmax` the rate is the bound min(1, extremes / (g + 1)) of g groups.
    Raises InputError where there are too few groups, prompts without finite scores, or scores that do not differ.
    """
    calibrator = calibrator or Calibrator()
    check_pair(scorer.kind, calibrator.rule)
    extremes = np.asarray(extremes, np.float64)
    if np.isnan(extremes).any() or np.isposinf(extremes).any():
        raise InputError("some calibration prompts have no finite scores: leave them out")
    scale, held = calibrator.halves(groups)
    check_roles(scorer, extremes[scale], groups[scale], least=1 if calibrator.rule == "minmax" else SCALE_AT_LEAST)
    centre, spread = scale_of(calibrator.rule, extremes[scale])
    monitor = Monitor(scorer=scorer, rule=calibrator.rule, centre=centre, spread=spread, threshold=EPSILON)
    counted = {"n": len(extremes), "directions": len(scorer.directions), "extremes": scorer.extremes}
    if calibrator.rule == "minmax":
        independent = len(np.unique(groups))
        bound = min(1.0, scorer.extremes / (independent + 1))
        return monitor.with_threshold(EPSILON, {"fpr": bound, "groups": independent, **counted})
    threshold, known = calibrator.threshold(monitor.score(extremes[held]).score, groups[held])
    halves = {"n_scale": int(scale.sum()), "n_threshold": int(held.sum())}
    told = {"guarantee": calibrator.guarantee, "tail": calibrator.tail}
    return monitor.with_threshold(threshold, {**known, **told, **counted, **halves})


def check_pair(scoring: str, rule: str) -> None:
    """Raises InputError for a scoring that the paper's rule does not have."""
    if rule == "minmax" and scoring != "cosine":
        raise InputError(f"rule minmax is the paper's, of cosines: leave --scoring {scoring} out, or use another rule")


def check_roles(scorer: Scorer, extremes: np.ndarray, groups: np.ndarray, *, least: int) -> None:
    """Raises InputError where fewer than `least` groups have tokens of a role: it would have no scale."""
    for place, role in enumerate(scorer.roles):
        there = np.isfinite(extremes[:, :, 2 * place]).any(axis=1)
        found = len(np.unique(groups[there]))
        if found < least:
            raise InputError(
                f"{found} of {len(np.unique(groups))} independent calibration prompts for the scale have tokens of the "
                f"role {role}, {least} are needed: give prompts with such tokens, or other --roles (plain texts have "
                "the role text)"
            )


def group_hash(name: Any) -> bytes:
    """32 bytes that order groups, the same in every process."""
    return hashlib.sha256(str(name).encode()).digest()
