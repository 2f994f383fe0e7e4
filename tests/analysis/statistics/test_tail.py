"""Extrapolated rates against distributions whose tails are known, and thresholds with confidence against theirs."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.tail import fit_tail
from analysis.statistics.tolerance import tolerance_groups_needed, tolerance_threshold
from store.errors import InputError


@pytest.mark.parametrize("truth", [stats.norm(), stats.expon(), stats.t(3)], ids=["normal", "exponential", "t3"])
def test_one_in_a_thousand_from_500_groups(truth: Any) -> None:
    """The rate is right on average, and the interval says how far one fit may be off."""
    rng = np.random.default_rng(0)
    rates, covered = [], 0
    for _ in range(50):
        tail = fit_tail(truth.rvs(500, random_state=rng))
        threshold = tail.threshold(0.001)
        low, high = tail.beyond_interval(threshold)
        rates.append(truth.sf(threshold))
        covered += low <= rates[-1] <= high
    assert 0.0005 < np.mean(rates) <= 0.001 + 3 * np.std(rates) / 50**0.5
    assert stats.binom.cdf(covered, 50, 0.95) > 0.001
    assert np.mean(np.array(rates) > 0.002) > 0.02  # and why it must be called an extrapolation


def test_the_fit_is_scipys() -> None:
    rng = np.random.default_rng(1)
    for shape in (-0.2, 0.0, 0.3):
        tail = fit_tail(stats.genpareto.rvs(shape, scale=2.0, size=2000, random_state=rng) + 7)
        expected = stats.genpareto.fit(tail.excesses, floc=0)
        assert (tail.shape, tail.scale) == pytest.approx((expected[0], expected[2]), abs=2e-3)
        assert tail.beyond(tail.cut) == pytest.approx(tail.rate)
        assert tail.rate == 0.1
        low, high = tail.beyond_interval(tail.cut + 4)
        assert low < tail.beyond(tail.cut + 4) < high


def test_too_little_for_a_tail_is_refused() -> None:
    with pytest.raises(InputError, match="100 control groups or more, there are 99"):
        fit_tail(np.arange(99.0))
    with pytest.raises(InputError, match="too many of the largest"):
        fit_tail(np.ones(200))


def test_the_rate_beyond_a_tolerance_threshold_is_small_with_confidence() -> None:
    """Exactly as often as the Beta distribution says, which for 299 groups at 1 % is 95.05 times in 100."""
    assert [tolerance_groups_needed(fpr) for fpr in (0.01, 0.05)] == [299, 59]
    rng = np.random.default_rng(2)
    for n in (59, 93, 150):
        thresholds = np.array([tolerance_threshold(rng.random(n), np.arange(n), fpr=0.05) for _ in range(600)])
        held = np.mean(1 - thresholds <= 0.05)
        k = next(k for k in range(n, 0, -1) if stats.beta.cdf(0.05, k, n + 1 - k) >= 0.95)
        assert held == pytest.approx(stats.beta.cdf(0.05, k, n + 1 - k), abs=0.03)
    with pytest.raises(InputError, match="takes 59 control groups, there are 58"):
        tolerance_threshold(rng.random(58), np.arange(58), fpr=0.05)


def test_a_group_counts_once_by_its_largest() -> None:
    scores, groups = np.r_[np.arange(60.0), 100.0], np.r_[np.arange(60), 59]
    assert tolerance_threshold(scores, groups, fpr=0.05) == 100.0


def test_the_interval_holds_the_rate_of_its_threshold() -> None:
    """Of a tail with an end too, where the best fit alone says that nothing is beyond the threshold."""
    rng = np.random.default_rng(3)
    for n in (150, 600):
        tail = fit_tail(rng.random(n))
        assert tail.shape < -0.3
        for fpr in (0.01, 1e-3, 1e-4):
            threshold = tail.threshold(fpr)
            low, high = tail.beyond_interval(threshold)
            assert low < tail.beyond(threshold) == pytest.approx(fpr, rel=1e-3)
            assert high > fpr
    with pytest.raises(InputError, match=r"too far beyond what 600 .* ask for 1.7e-05"):
        tail.threshold(1e-12)
