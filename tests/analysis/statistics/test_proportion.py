"""Binomial intervals against statsmodels, scipy and exact coverage; clustered ones by simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from analysis.statistics.bootstrap import bootstrap_mean
from analysis.statistics.proportion import clopper_pearson, wilson
from store.errors import InputError


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1, 250), (499, 500)])
@pytest.mark.parametrize(("ours", "theirs"), [(clopper_pearson, "beta"), (wilson, "wilson")])
def test_equal_to_statsmodels(ours, theirs, successes, trials):
    assert ours(successes, trials) == pytest.approx(proportion_confint(successes, trials, method=theirs), abs=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.97])
def test_clopper_pearson_covers_at_least_its_level_exactly(rate):
    trials = 60
    covered = [low <= rate <= high for low, high in (clopper_pearson(k, trials) for k in range(trials + 1))]
    assert stats.binom.pmf(np.arange(trials + 1), trials, rate)[covered].sum() >= 0.95


def test_one_row_per_group_is_exact():
    interval = bootstrap_mean(np.arange(100) < 7, np.arange(100))
    assert interval.method == "Clopper-Pearson"
    assert (interval.low, interval.high) == pytest.approx(clopper_pearson(7, 100))


def test_no_event_in_many_rows_of_few_groups_is_bounded_by_groups():
    """10,000 clean rows of 20 groups show no more than 20 clean groups do."""
    interval = bootstrap_mean(np.zeros(10_000), np.arange(10_000) % 20)
    assert interval.high == pytest.approx(1 - 0.025 ** (1 / 20))


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.95])
def test_clustered_rates_are_covered(rate):
    """Groups of 6 rows whose rates vary like a beta with correlation 0.3."""
    generator = np.random.default_rng(0)
    covered = 0
    for study in range(300):
        rates = generator.beta(rate * 2.3, (1 - rate) * 2.3, 100)
        rows = generator.random((100, 6)) < rates[:, None]
        interval = bootstrap_mean(rows.ravel(), np.repeat(np.arange(100), 6), resamples=400, seed=study)
        covered += interval.low <= rate <= interval.high
    assert covered / 300 >= 0.935


def test_no_rows_are_refused():
    with pytest.raises(InputError):
        bootstrap_mean(np.zeros(0), np.zeros(0))
