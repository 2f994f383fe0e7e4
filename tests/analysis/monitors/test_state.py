"""Streaming calibration: equal to the single pass in any order, and what leaving flagged traffic out costs."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.monitors import CalibrationState, Calibrator
from store.errors import InputError
from tests.analysis.monitors.clean import heavy, names, scorer

CALIBRATOR = Calibrator(fpr=0.05)
VALUES = heavy(np.random.default_rng(0), 260, 4)
GROUPS = np.array([f"g{i // 2}" for i in range(260)])


def empty(capacity: int = 40) -> CalibrationState:
    return CalibrationState.empty(scorer(4), CALIBRATOR, capacity=capacity)


def sets_scale(group: str) -> bool:
    return hashlib.sha256(group.encode()).digest()[0] >= 128


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(260)), st.lists(st.integers(1, 259), min_size=1, max_size=6), st.booleans())
def test_merged_in_any_order_it_is_the_single_pass(order: list[int], cuts: list[int], backwards: bool) -> None:
    single = empty().add(VALUES, GROUPS)
    parts = [empty().add(VALUES[rows], GROUPS[rows]) for rows in np.split(np.array(order), sorted(set(cuts)))]
    merged = empty()
    for part in reversed(parts) if backwards else parts:
        merged = part.merge(merged) if backwards else merged.merge(part)
    for name in ("scale_groups", "count", "groups", "maxima"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(single, name))
    np.testing.assert_allclose(merged.mean, single.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.deviation, single.deviation, rtol=1e-12)
    assert merged.monitor().threshold == pytest.approx(single.monitor().threshold, rel=1e-12)


def test_moments_and_kept_groups_are_those_of_the_prompts() -> None:
    state = empty().add(VALUES, GROUPS)
    scale = np.array([sets_scale(group) for group in GROUPS])
    np.testing.assert_allclose(state.mean, VALUES[scale].mean(0))
    np.testing.assert_allclose(state.deviation, VALUES[scale].var(0) * scale.sum())
    kept = sorted(set(GROUPS[~scale]), key=lambda group: hashlib.sha256(group.encode()).digest())[:40]
    largest = np.stack([VALUES[group == GROUPS].max(0) for group in kept]).astype(np.float32)
    np.testing.assert_array_equal(state.maxima, largest)
    monitor = state.monitor()
    np.testing.assert_allclose(monitor.spread, VALUES[scale].std(0, ddof=1))
    assert monitor.calibration["groups"] == 40
    assert state.maxima.nbytes == 4 * 40 * 4 * 2


def test_the_rate_is_that_of_a_monitor_calibrated_at_once() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(60):
        state = empty(capacity=60)
        for start in range(0, 200, 50):
            state = state.add(heavy(rng, 50, 4), names(200)[start : start + 50])
        rates.append(state.monitor().score(heavy(rng, 2000, 4)).flagged.mean())
    assert 0.025 < np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(60)


def test_what_was_flagged_never_widens_the_monitor() -> None:
    rng = np.random.default_rng(2)
    state = CalibrationState.empty(scorer(4), CALIBRATOR, capacity=400).add(heavy(rng, 400, 4), names(400))
    monitor = state.monitor()
    attack = heavy(rng, 4000, 4)
    attack[:, 1, 0] += 100
    widened = state.add(attack, np.char.add("attack", names(4000))).monitor()
    assert widened.score(attack).flagged.mean() < 0.2
    updated = state.update(monitor, attack, np.char.add("attack", names(4000)))
    again = updated.tightened(monitor)
    assert updated.left_out == again.calibration["left_out"] == monitor.score(attack).flagged.sum() > 3900
    for later in (again, updated.monitor()):
        assert later.score(attack).flagged.mean() > 0.98
        assert later.calibration["truncated"]
        assert later.calibration["fpr_upper_95"] is None


def test_leaving_flagged_traffic_out_makes_false_alarms_more_frequent_as_stated() -> None:
    """Fed with its own clean, unflagged traffic: from f to 1 − (1 − α)(1 − f) where that traffic outweighs the old."""
    rng = np.random.default_rng(3)
    state = CalibrationState.empty(scorer(4), CALIBRATOR, capacity=4000)
    state = state.add(heavy(rng, 200, 4), names(200))
    monitor = state.monitor()
    new = heavy(rng, 40_000, 4)
    rate = monitor.score(new).flagged.mean()
    for step in range(3):
        fresh = np.char.add(f"round {step} ", names(6000))
        lone = CalibrationState.empty(scorer(4), CALIBRATOR, capacity=4000)
        lone = lone.update(monitor, heavy(rng, 6000, 4), fresh)
        tighter = lone.tightened(monitor)
        now = tighter.score(new).flagged.mean()
        assert tighter.threshold <= monitor.threshold
        assert now == pytest.approx(1 - 0.95 * (1 - rate), abs=0.015)
        monitor, rate = tighter, now
    assert rate > 0.13


def test_prompts_without_tokens_of_a_role_do_not_count_for_it() -> None:
    values = np.concatenate([VALUES, VALUES + 1], axis=2)
    values[::2, :, 2:] = -np.inf
    made = CalibrationState.empty(scorer(4, roles=("user", "assistant")), CALIBRATOR, capacity=40)
    state = made.add(values[:100], GROUPS[:100]).merge(made.add(values[100:], GROUPS[100:]))
    scale = np.array([sets_scale(group) for group in GROUPS])
    np.testing.assert_allclose(state.mean[:, 2:], values[scale & (np.arange(260) % 2 == 1)][:, :, 2:].mean(0))
    assert np.isfinite(state.monitor().threshold)


def test_what_does_not_merge_is_refused() -> None:
    state = empty().add(VALUES, GROUPS)
    with pytest.raises(InputError, match="do not merge: they are of other"):
        state.merge(CalibrationState.empty(scorer(5), CALIBRATOR, capacity=40))
    with pytest.raises(InputError, match="medians and ranges"):
        CalibrationState.empty(scorer(4), Calibrator(rule="mad"))
    with pytest.raises(InputError, match="takes 100 groups and 40 would be kept"):
        CalibrationState.empty(scorer(4), Calibrator(fpr=0.01), capacity=40)
    with pytest.raises(InputError, match="takes 20 groups"):
        empty().add(VALUES[:20], GROUPS[:20]).monitor()
    with pytest.raises(InputError, match="no finite scores"):
        state.add(np.full((1, 4, 2), np.nan), GROUPS[:1])
