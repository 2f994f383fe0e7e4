"""Streaming calibration: what is kept of clean traffic, small, mergeable, and the same in whatever order it came.

A group's hashed name says whether it sets the scale or the threshold, and whether it is kept: of the groups that set
the threshold the `capacity` with the smallest hashes are, with the largest of each of their extremes. That choice knows
nothing of scores, so the kept groups are a random sample of all, and the threshold's guarantee holds for them as it is.

Traffic that a monitor flagged must not calibrate the next one: an attack seen often enough would become normal.
Leaving it out has a price. The scores that are left are cut off at the present threshold, which a share f of clean
traffic exceeds. The threshold never rises, so that the false-positive rate can only grow: from f towards
1 − (1 − α)(1 − f) where only the new traffic counts, and by as much again with every further round. Where an honest
rate matters more than a fresh one, calibrate on traffic that was checked by other means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.monitors.calibrate import SCALE_AT_LEAST, Calibrator, check_pair, group_hash
from analysis.monitors.monitor import Monitor
from analysis.monitors.scale import floored
from analysis.sinks.scoring import Scorer
from store.errors import InputError

CAPACITY = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationState:
    """Of clean prompts with extremes [c, s] each: memory is at most (4 · capacity + 24) · c · s bytes, whatever came.

    scale_groups  uint64 ascending, hashes of groups that set the scale, the first 20 of them: to know that there are 20
    count         int64 [c, s], prompts that set the scale and have tokens of the role
    mean          float64 [c, s], of their extremes
    deviation     float64 [c, s], sum of squares of what is left after the mean
    groups        uint64 [k] ascending, hashes of the kept groups that set the threshold
    maxima        float32 [k, c, s], the largest of each extreme over a group's prompts
    left_out      prompts that `update` did not take
    """

    scorer: Scorer
    calibrator: Calibrator
    capacity: int
    scale_groups: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    groups: np.ndarray
    maxima: np.ndarray
    left_out: int = 0

    @staticmethod
    def empty(scorer: Scorer, calibrator: Calibrator, *, capacity: int = CAPACITY) -> CalibrationState:
        """Raises InputError for a rule whose scale does not merge (only `z`'s does), and a capacity that can never be
        enough for the calibrator's rate."""
        check_pair(scorer.kind, calibrator.rule)
        if calibrator.rule != "z":
            raise InputError(f"medians and ranges of streams do not merge: use rule z, not {calibrator.rule}")
        if capacity < calibrator.groups_needed:
            raise InputError(
                f"a threshold at {100 * calibrator.fpr:g} % takes {calibrator.groups_needed} groups and {capacity} "
                "would be kept: give more capacity"
            )
        shape = (len(scorer.channels), 2 * len(scorer.roles))
        return CalibrationState(
            scorer=scorer,
            calibrator=calibrator,
            capacity=capacity,
            scale_groups=np.zeros(0, np.uint64),
            count=np.zeros(shape, np.int64),
            mean=np.zeros(shape),
            deviation=np.zeros(shape),
            groups=np.zeros(0, np.uint64),
            maxima=np.zeros((0, *shape), np.float32),
        )

    def add(self, extremes: np.ndarray, groups: np.ndarray) -> CalibrationState:
        """With n prompts more: extremes float [n, c, s], groups string [n]. Raises InputError as `calibrate` does."""
        values = np.asarray(extremes, np.float64)
        if np.isnan(values).any() or np.isposinf(values).any():
            raise InputError("some calibration prompts have no finite scores: leave them out")
        hashes = np.array([int.from_bytes(group_hash(name)[:8], "big") for name in groups], np.uint64)
        scale = hashes >= np.uint64(1 << 63)
        known = np.where(np.isneginf(values[scale]), np.nan, values[scale])
        count = (~np.isnan(known)).sum(axis=0)
        mean = np.nansum(known, axis=0) / np.maximum(count, 1)
        kept = _kept(hashes[~scale], values[~scale].astype(np.float32), self.capacity)
        return self.merge(
            replace(
                self,
                scale_groups=np.unique(hashes[scale])[:SCALE_AT_LEAST],
                count=count,
                mean=mean,
                deviation=np.nansum((known - mean) ** 2, axis=0),
                groups=kept[0],
                maxima=kept[1],
                left_out=0,
            )
        )

    def merge(self, other: CalibrationState) -> CalibrationState:
        """Of both states' prompts. Raises InputError for a state of other scores or another calibrator.

        Moments by the update of Chan, Golub and LeVeque (1979), see `analysis.sinks.moments`.
        """
        mine, its = ((s.scorer.settings(), s.calibrator, s.capacity) for s in (self, other))
        if mine != its:
            raise InputError("two calibrations do not merge: they are of other directions, scores or rates")
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        step = other.mean - self.mean
        kept = _kept(
            np.concatenate([self.groups, other.groups]), np.concatenate([self.maxima, other.maxima]), self.capacity
        )
        return replace(
            self,
            scale_groups=np.union1d(self.scale_groups, other.scale_groups)[:SCALE_AT_LEAST],
            count=total,
            mean=self.mean + share * step,
            deviation=self.deviation + other.deviation + self.count * share * step**2,
            groups=kept[0],
            maxima=kept[1],
            left_out=self.left_out + other.left_out,
        )

    def update(self, monitor: Monitor, extremes: np.ndarray, groups: np.ndarray) -> CalibrationState:
        """With those of n prompts more that `monitor` does not flag; the others are counted in `left_out`."""
        flagged = monitor.score(extremes).flagged
        added = self.add(extremes[~flagged], groups[~flagged])
        return replace(added, left_out=added.left_out + int(flagged.sum()))

    def monitor(self) -> Monitor:
        """Calibrated on all that was added. Raises InputError where there are too few groups."""
        if len(self.scale_groups) < SCALE_AT_LEAST or self.count[:, ::2].min() < SCALE_AT_LEAST:
            raise InputError(
                f"the scale takes {SCALE_AT_LEAST} groups, and as many prompts with tokens of every role, there are "
                "fewer: add more prompts"
            )
        spread = np.sqrt(self.deviation / np.maximum(self.count - 1, 1))
        spread = floored(spread, self.mean, self.count == 0)
        return self._calibrated(Monitor(scorer=self.scorer, rule="z", centre=self.mean, spread=spread, threshold=0.0))

    def tightened(self, monitor: Monitor) -> Monitor:
        """`monitor` with its scale and the threshold of what is in this state now: after `update`s of the state that
        it was calibrated on, never a higher one. Its rate is no longer bounded by `fpr`, and says so."""
        found = self._calibrated(monitor)
        return found.with_threshold(min(found.threshold, monitor.threshold), found.calibration)

    def _calibrated(self, monitor: Monitor) -> Monitor:
        """With the threshold of the kept groups. Where prompts were left out the rate has no bound: `truncated`."""
        threshold, known = self.calibrator.threshold(monitor.score(self.maxima).score, self.groups)
        told: Mapping[str, Any] = {
            **known,
            "guarantee": self.calibrator.guarantee,
            "tail": self.calibrator.tail,
            "directions": len(self.scorer.directions),
            "extremes": self.scorer.extremes,
            "n_scale": int(self.count.max()),
            "left_out": self.left_out,
            **({"fpr_upper_95": None, "truncated": True} if self.left_out else {}),
        }
        return monitor.with_threshold(threshold, told)


def _kept(hashes: np.ndarray, values: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest hashes of groups, each once, and the largest of each extreme over each group's rows."""
    groups, places = np.unique(hashes, return_inverse=True)
    groups = groups[:capacity]
    maxima = np.full((len(groups), *values.shape[1:]), -np.inf, np.float32)
    here = places < len(groups)
    np.maximum.at(maxima, places[here], values[here])
    return groups, maxima
