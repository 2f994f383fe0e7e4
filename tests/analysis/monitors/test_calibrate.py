"""The stated false-alarm rate against simulation, and the paper's rule against its definition."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.monitors import Monitor, calibrate, common_prefix, load_monitor, watched
from store.direction import Direction
from store.errors import InputError


def directions(t: int) -> list[Direction]:
    return [
        Direction(
            name=f"model.layers.{i}.mlp.down_proj.weight.left.0",
            site=f"resid_post.{i}",
            vector=np.eye(8, dtype=np.float32)[i % 8],
            source={"role": "down", "side": "left", "significant": i % 2 == 0},
        )
        for i in range(t)
    ]


def heavy(rng: np.random.Generator, n: int, t: int) -> np.ndarray:
    """Extremes with unequal scales, heavy tails and a factor common to all directions."""
    common = rng.standard_normal((n, 1, 1))
    return (rng.standard_t(4, (n, t, 2)) + common) * np.linspace(0.1, 3, t)[None, :, None] + 5


def names(n: int) -> np.ndarray:
    return np.array([f"p{i}" for i in range(n)])


@pytest.mark.parametrize(("n", "fpr"), [(240, 0.01), (120, 0.05)])
def test_false_alarms_on_new_prompts_stay_at_the_rate_asked_for(n: int, fpr: float) -> None:
    rng = np.random.default_rng(0)
    rates, bounds = [], []
    for _ in range(150):
        monitor = calibrate(directions(30), heavy(rng, n, 30), names(n), fpr=fpr)
        rates.append(monitor.score(heavy(rng, 1000, 30)).flagged.mean())
        bounds.append(monitor.calibration["fpr_upper_95"])
    standard_error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= fpr + 3 * standard_error
    assert np.mean(rates) >= 0.5 * fpr  # and it does not keep quiet to get there
    covered = int(np.sum(np.array(rates) <= bounds))
    assert stats.binom.cdf(covered, len(rates), 0.95) > 0.001  # the bound holds in 95 % of calibrations


def test_scale_and_threshold_from_the_same_prompts_would_miss_the_rate() -> None:
    """Why the halves are disjoint: the same computation without the split flags several times too many."""
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(60):
        clean, new = heavy(rng, 120, 400), heavy(rng, 500, 400)
        centre, spread = clean.mean(axis=0), clean.std(axis=0, ddof=1)
        own, other = (((x - centre) / spread).max(axis=(1, 2)) for x in (clean, new))
        rates.append(np.mean(other > np.sort(own)[-2]))  # the second largest of 120 for 1/60
    assert np.mean(rates) > 2 / 60


def test_an_outlier_is_flagged_by_its_direction_and_side() -> None:
    rng = np.random.default_rng(2)
    monitor = calibrate(directions(6), heavy(rng, 300, 6), names(300), fpr=0.02)
    strange = heavy(rng, 3, 6)
    strange[1, 4, 1] += 400
    found = monitor.score(strange)
    assert found.flagged.tolist() == [False, True, False]
    assert (found.direction[1], found.side[1]) == (4, 1)


def test_groups_never_straddle_the_halves() -> None:
    rng = np.random.default_rng(3)
    groups = np.array([f"g{i // 5}" for i in range(400)])
    values = heavy(rng, 80, 4)[np.arange(400) // 5]  # prompts of one group are copies
    monitor = calibrate(directions(4), values, groups, fpr=0.05)
    assert monitor.calibration["n_scale"] % 5 == monitor.calibration["n_threshold"] % 5 == 0
    rates = []
    for _ in range(60):
        fitted = calibrate(directions(4), heavy(rng, 80, 4)[np.arange(400) // 5], groups, fpr=0.05)
        rates.append(fitted.score(heavy(rng, 800, 4)).flagged.mean())
    assert np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(60)


def test_too_few_prompts_are_refused_with_the_number_needed() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(InputError, match=r"needs 120 independent .* there are 60: give more, or ask for --fpr 0\.025"):
        calibrate(directions(3), heavy(rng, 60, 3), names(60), fpr=0.01)
    calibrate(directions(3), heavy(rng, 60, 3), names(60), fpr=0.025)
    with pytest.raises(InputError, match="not between"):
        calibrate(directions(3), heavy(rng, 60, 3), names(60), fpr=0)


def test_a_direction_that_never_moves_does_not_fire_on_rounding() -> None:
    rng = np.random.default_rng(5)
    values = heavy(rng, 300, 6)
    values[:, 0] = 0.5
    monitor = calibrate(directions(6), values, names(300), fpr=0.02)
    again = values[:20].copy()
    again[:, 0] += 1e-3
    assert monitor.score(again).flagged.mean() < 0.2


def test_minmax_is_the_papers_rule() -> None:
    rng = np.random.default_rng(6)
    cosines = rng.uniform(-0.3, 0.4, (50, 40, 5))  # prompts, tokens, directions
    extremes = np.stack([cosines.max(axis=1), (-cosines).max(axis=1)], axis=2)
    monitor = calibrate(directions(5), extremes, names(50), rule="minmax")
    new = rng.uniform(-0.305, 0.415, (200, 10, 5))
    low, high = cosines.min(axis=(0, 1)) - 0.01, cosines.max(axis=(0, 1)) + 0.01
    expected = ((new < low) | (new > high)).any(axis=(1, 2))
    assert 0 < expected.mean() < 1
    found = monitor.score(np.stack([new.max(axis=1), (-new).max(axis=1)], axis=2))
    np.testing.assert_array_equal(found.flagged, expected)
    assert monitor.calibration["fpr"] == pytest.approx(2 * 5 / 51)


def test_what_is_watched() -> None:
    given = directions(8)
    assert [d.site for d in watched(given, rule="z")] == [f"resid_post.{i}" for i in (0, 2, 4, 6)]
    assert watched(given, rule="z", noise=True) == given
    assert [d.site for d in watched(given, rule="minmax")] == [f"resid_post.{i}" for i in range(5)]
    with pytest.raises(InputError, match="none of the 0 directions"):
        watched([], rule="z")


def test_a_monitor_reads_back_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    monitor = calibrate(directions(6), heavy(rng, 300, 6), names(300), fpr=0.02, prefix=(1, 4, 2))
    monitor.save(tmp_path / "m.safetensors")
    again = load_monitor(tmp_path / "m.safetensors")
    assert isinstance(again, Monitor)
    assert again.id == monitor.id
    assert again.calibration == monitor.calibration
    values = heavy(rng, 50, 6)
    np.testing.assert_array_equal(again.score(values).score, monitor.score(values).score)
    with pytest.raises(InputError, match="no monitor at"):
        load_monitor(tmp_path / "none")


def test_common_prefix_never_covers_a_whole_prompt() -> None:
    assert common_prefix([np.array([5, 6, 7, 8]), np.array([5, 6, 9])]) == (5, 6)
    assert common_prefix([np.array([5, 6]), np.array([5, 6, 9])]) == (5,)
    assert common_prefix([np.array([1]), np.array([1, 2])]) == ()
    assert common_prefix([]) == ()


def test_the_papers_rule_counts_groups_in_its_bound() -> None:
    rng = np.random.default_rng(8)
    groups = np.array([f"g{i // 5}" for i in range(100)])
    calibration = calibrate(directions(3), heavy(rng, 100, 3), groups, rule="minmax").calibration
    assert calibration["fpr"] == pytest.approx(2 * 3 / 21)
    assert (calibration["n"], calibration["groups"]) == (100, 20)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_prompt_with_one_extreme_that_is_not_finite_has_no_score(value: float) -> None:
    rng = np.random.default_rng(9)
    monitor = calibrate(directions(4), heavy(rng, 300, 4), names(300), fpr=0.02)
    given = heavy(rng, 3, 4)
    whole = monitor.score(given).score
    given[1, 2, 0] = value
    found = monitor.score(given)
    np.testing.assert_array_equal(found.score, [whole[0], np.nan, whole[2]])
    assert (found.direction[1], found.side[1], found.flagged[1]) == (-1, -1, False)
