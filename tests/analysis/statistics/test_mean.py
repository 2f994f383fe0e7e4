"""The interval of a mean: its value, how often it covers, and what it refuses."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.mean import mean_interval
from store import InputError


def test_one_row_a_group_is_students_interval_or_a_little_wider() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=40)
    found = mean_interval(values, np.arange(40))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(values.mean())
    assert low - 0.1 < found.low <= low + 1e-9
    assert high - 1e-9 <= found.high < high + 0.1
    assert found.caveat is not None


@pytest.mark.parametrize(("units", "rows"), [(8, 1), (30, 4)])
def test_it_covers_where_rows_of_a_group_go_together(units: int, rows: int) -> None:
    """500 studies: at the level but for what chance allows (3 standard errors), and far from it by rows."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(units), rows)
    covered = by_rows = 0
    for study in range(500):
        values = rng.normal(size=units)[groups] + 0.3 * rng.normal(size=units * rows)
        found = mean_interval(values, groups, resamples=200, seed=study)
        covered += found.low <= 0 <= found.high
        by_rows += abs(values.mean()) <= 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert covered >= 500 * (0.95 - 3 * np.sqrt(0.95 * 0.05 / 500))
    if rows > 1:
        assert by_rows < 0.8 * 500


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(InputError, match="two independent prompts"):
        mean_interval(np.ones(3), np.zeros(3), noun="prompts")
    with pytest.raises(InputError, match="not all finite"):
        mean_interval(np.array([1.0, np.nan]), np.arange(2))
