"""The stated false-alarm rate against simulation, and the paper's rule against its definition."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.monitors import Calibrator, Monitor, calibrate, common_prefix, load_monitor, watched
from store.direction import save_directions
from store.errors import InputError
from tests.analysis.monitors.clean import directions, heavy, names, scorer


@pytest.mark.parametrize(
    ("rule", "n", "fpr", "times"), [("z", 240, 0.01, 150), ("mad", 120, 0.05, 60), ("percentile", 120, 0.05, 60)]
)
def test_false_alarms_on_new_prompts_stay_at_the_rate_asked_for(rule: str, n: int, fpr: float, times: int) -> None:
    rng = np.random.default_rng(0)
    rates, bounds = [], []
    for _ in range(times):
        calibrator = Calibrator(rule=rule, fpr=fpr)
        monitor = calibrate(scorer(30), heavy(rng, n, 30), names(n), calibrator=calibrator)
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
    monitor = calibrate(scorer(6), heavy(rng, 300, 6), names(300), calibrator=Calibrator(fpr=0.02))
    strange = heavy(rng, 3, 6)
    strange[1, 4, 1] += 400
    found = monitor.score(strange)
    assert found.flagged.tolist() == [False, True, False]
    assert (found.channel[1], found.side[1]) == (4, 1)


def test_groups_never_straddle_the_halves() -> None:
    rng = np.random.default_rng(3)
    groups = np.array([f"g{i // 5}" for i in range(400)])
    values = heavy(rng, 80, 4)[np.arange(400) // 5]  # prompts of one group are copies
    monitor = calibrate(scorer(4), values, groups, calibrator=Calibrator(fpr=0.05))
    assert monitor.calibration["n_scale"] % 5 == monitor.calibration["n_threshold"] % 5 == 0
    rates = []
    for _ in range(60):
        fitted = calibrate(scorer(4), heavy(rng, 80, 4)[np.arange(400) // 5], groups, calibrator=Calibrator(fpr=0.05))
        rates.append(fitted.score(heavy(rng, 800, 4)).flagged.mean())
    assert np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(60)


def test_too_few_prompts_are_refused_with_the_number_needed() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(InputError, match=r"needs 120 independent .* there are 60: give more, or ask for --fpr 0\.025"):
        calibrate(scorer(3), heavy(rng, 60, 3), names(60), calibrator=Calibrator(fpr=0.01))
    calibrate(scorer(3), heavy(rng, 60, 3), names(60), calibrator=Calibrator(fpr=0.025))
    with pytest.raises(InputError, match="not between"):
        calibrate(scorer(3), heavy(rng, 60, 3), names(60), calibrator=Calibrator(fpr=0))


def test_a_direction_that_never_moves_does_not_fire_on_rounding() -> None:
    rng = np.random.default_rng(5)
    values = heavy(rng, 300, 6)
    values[:, 0] = 0.5
    monitor = calibrate(scorer(6), values, names(300), calibrator=Calibrator(fpr=0.02))
    again = values[:20].copy()
    again[:, 0] += 1e-3
    assert monitor.score(again).flagged.mean() < 0.2


def test_minmax_is_the_papers_rule() -> None:
    rng = np.random.default_rng(6)
    cosines = rng.uniform(-0.3, 0.4, (50, 40, 5))  # prompts, tokens, directions
    extremes = np.stack([cosines.max(axis=1), (-cosines).max(axis=1)], axis=2)
    monitor = calibrate(scorer(5), extremes, names(50), calibrator=Calibrator(rule="minmax"))
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
    monitor = calibrate(scorer(6, prefix=(1, 4, 2)), heavy(rng, 300, 6), names(300), calibrator=Calibrator(fpr=0.02))
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


def test_a_conditional_threshold_holds_for_95_monitors_in_100_where_a_marginal_one_does_for_half() -> None:
    rng = np.random.default_rng(10)
    broken = {"marginal": 0, "conditional": 0}
    new = heavy(rng, 6_000, 3)
    for _ in range(120):
        clean = heavy(rng, 200, 3)
        for guarantee in broken:
            monitor = calibrate(scorer(3), clean, names(200), calibrator=Calibrator(fpr=0.05, guarantee=guarantee))
            broken[guarantee] += monitor.score(new).flagged.mean() > 0.05
    assert stats.binom.sf(broken["conditional"] - 1, 120, 0.05) > 0.001
    assert broken["marginal"] > 30


def test_what_does_not_go_together_is_refused() -> None:
    clean = heavy(np.random.default_rng(11), 200, 3)
    with pytest.raises(InputError, match=r"with 95 % confidence needs 319 .* 299 for the threshold.* --fpr 0\.017"):
        calibrate(scorer(3), clean, names(200), calibrator=Calibrator(guarantee="conditional"))
    calibrate(scorer(3), clean, names(200), calibrator=Calibrator(guarantee="conditional", fpr=0.017))
    with pytest.raises(InputError, match="from a fitted tail needs 120"):
        calibrate(scorer(3), clean[:90], names(90), calibrator=Calibrator(tail="pot"))
    with pytest.raises(InputError, match="guarantees nothing"):
        Calibrator(tail="pot", guarantee="conditional")
    with pytest.raises(InputError, match="calibration range"):
        Calibrator(rule="minmax", guarantee="conditional")
    with pytest.raises(InputError, match="unknown rule 'best': use z, mad"):
        Calibrator(rule="best")
    with pytest.raises(InputError, match="of cosines"):
        calibrate(scorer(3, kind="projection"), clean, names(200), calibrator=Calibrator(rule="minmax"))


def test_a_rate_finer_than_the_prompts_show_is_called_extrapolated() -> None:
    clean = heavy(np.random.default_rng(12), 600, 3)
    with pytest.raises(InputError, match="needs 1020"):
        calibrate(scorer(3), clean, names(600), calibrator=Calibrator(fpr=0.001))
    known = calibrate(scorer(3), clean, names(600), calibrator=Calibrator(fpr=0.001, tail="pot")).calibration
    assert known["extrapolated"]["low"] < 0.001 < known["extrapolated"]["high"]
    assert known["fpr_upper_95"] > 0.005  # what 300 groups show by themselves
    with pytest.raises(InputError, match="says nothing of a false-positive rate of 20 %"):
        calibrate(scorer(3), clean, names(600), calibrator=Calibrator(fpr=0.2, tail="pot"))


@pytest.mark.parametrize("rule", ["z", "mad", "percentile"])
def test_scales_are_those_of_their_definition(rule: str) -> None:
    clean = heavy(np.random.default_rng(13), 400, 5)
    calibrator = Calibrator(rule=rule, fpr=0.05)
    scale, held = calibrator.halves(names(400))
    assert not (scale & held).any()
    monitor = calibrate(scorer(5), clean, names(400), calibrator=calibrator)
    own = clean[scale]
    median = np.median(own, axis=0)
    centre, spread = {
        "z": (own.mean(0), own.std(0, ddof=1)),
        "mad": (median, stats.median_abs_deviation(own, axis=0, scale="normal")),
        "percentile": (median, np.percentile(own, 95, axis=0) - median),
    }[rule]
    np.testing.assert_allclose(monitor.centre, centre)
    np.testing.assert_allclose(monitor.spread, spread, rtol=1e-4)


def without(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two roles: every second prompt has no token of the second."""
    both = np.concatenate([values, heavy(rng, *values.shape[:2]) + 50], axis=2)
    both[::2, :, 2:] = -np.inf
    return both


def test_prompts_without_tokens_of_a_role_have_no_part_in_its_scale_and_are_scored() -> None:
    rng = np.random.default_rng(14)
    roles = scorer(6, roles=("user", "assistant"))
    rates = []
    for _ in range(60):
        clean = without(heavy(rng, 160, 6), rng)
        calibrator = Calibrator(fpr=0.05)
        monitor = calibrate(roles, clean, names(160), calibrator=calibrator)
        rates.append(monitor.score(without(heavy(rng, 1000, 6), rng)).flagged.mean())
    own = clean[calibrator.halves(names(160))[0]]
    np.testing.assert_allclose(monitor.centre[:, 2:], np.nanmean(np.where(np.isinf(own), np.nan, own), axis=0)[:, 2:])
    assert 0.02 < np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(60)
    strange = without(heavy(rng, 4, 6), rng)
    strange[1, 3, 3] += 400
    strange[2] = -np.inf
    strange[3, 0, 0] = np.nan
    found = monitor.score(strange)
    assert (found.channel[1], found.role[1], found.side[1]) == (3, 1, 1)
    assert found.flagged.tolist() == [False, True, False, False]
    assert np.isneginf(found.score[2])
    assert np.isnan(found.score[3])
    assert monitor.calibration["extremes"] == 24
    rows = np.flatnonzero(calibrator.halves(names(160))[0])
    clean[rows[:3], :, 2:] = 0
    clean[rows[3:], :, 2:] = -np.inf
    with pytest.raises(InputError, match="3 of 80 .* have tokens of the role assistant, 20 are needed"):
        calibrate(roles, clean, names(160), calibrator=calibrator)


def test_a_monitor_of_the_first_format_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(15)
    monitor = calibrate(scorer(6), heavy(rng, 300, 6), names(300), calibrator=Calibrator(fpr=0.02))
    told = {
        "format": "thresher-monitor-1", "scoring": "cosine", "rule": "z", "prefix": [1, 4],
        "centre": monitor.centre.tolist(), "spread": monitor.spread.tolist(), "threshold": 3.5,
        "calibration": {}, "model": {}, "delta": {},
    }  # fmt: skip
    save_directions(tmp_path / "old", directions(6), told)
    old = load_monitor(tmp_path / "old")
    assert (old.scorer.prefix, old.scorer.roles, old.threshold) == ((1, 4), ("all",), 3.5)
    values = heavy(rng, 50, 6)
    np.testing.assert_array_equal(old.score(values).score, monitor.score(values).score)
    save_directions(tmp_path / "new", directions(6), {**told, "format": "thresher-monitor-9"})
    with pytest.raises(InputError, match="of a later version"):
        load_monitor(tmp_path / "new")


def test_the_papers_rule_counts_groups_in_its_bound() -> None:
    rng = np.random.default_rng(8)
    groups = np.array([f"g{i // 5}" for i in range(100)])
    calibration = calibrate(scorer(3), heavy(rng, 100, 3), groups, calibrator=Calibrator(rule="minmax")).calibration
    assert calibration["fpr"] == pytest.approx(2 * 3 / 21)
    assert (calibration["n"], calibration["groups"]) == (100, 20)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prompt_with_one_extreme_that_is_not_finite_has_no_score(value: float) -> None:
    rng = np.random.default_rng(9)
    monitor = calibrate(scorer(4), heavy(rng, 300, 4), names(300), calibrator=Calibrator(fpr=0.02))
    given = heavy(rng, 3, 4)
    whole = monitor.score(given).score
    given[1, 2, 0] = value
    found = monitor.score(given)
    np.testing.assert_array_equal(found.score, [whole[0], np.nan, whole[2]])
    assert (found.channel[1], found.side[1], found.flagged[1]) == (-1, -1, False)


@pytest.mark.parametrize("rule", ["z", "mad", "percentile"])
def test_prompts_that_do_not_differ_are_refused(rule: str) -> None:
    clean = np.full((160, 6, 2), 0.37)
    clean[:, 0] = heavy(np.random.default_rng(16), 160, 1)[:, 0]
    with pytest.raises(InputError, match=r"10 of the 12 extremes are the same .* give prompts that differ"):
        calibrate(scorer(6), clean, names(160), calibrator=Calibrator(rule=rule, fpr=0.05))


@pytest.mark.parametrize(("how", "told"), [({}, "to tell 10 %"), ({"tail": "pot"}, "too few calibration prompts have")])
def test_a_threshold_that_would_be_none_is_refused(how: dict[str, str], told: str) -> None:
    """Of the prompts of the threshold only a few have tokens of the role."""
    clean = heavy(np.random.default_rng(17), 300, 3)
    calibrator = Calibrator(fpr=0.1, **how)
    held = np.flatnonzero(calibrator.halves(names(300))[1])
    clean[held[5:]] = -np.inf
    with pytest.raises(InputError, match=told):
        calibrate(scorer(3), clean, names(300), calibrator=calibrator)
