"""The cluster bootstrap of AUROC: coverage, behaviour at the border, what it says of few groups."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.bootstrap import bootstrap_auroc, disjoint_pairs, resampled_aurocs
from analysis.statistics.ranking import Ranking, delong


def clustered_study(generator, groups, rows, auroc):
    """Scores with half their variance between groups and labels that are constant within a group."""
    codes = np.repeat(np.arange(2 * groups), rows)
    labels = codes < groups
    shift = np.sqrt(2) * stats.norm.ppf(auroc)
    scores = np.sqrt(0.5) * (generator.normal(size=2 * groups)[codes] + generator.normal(size=len(codes)))
    return scores + shift * labels, labels, codes


@pytest.mark.parametrize("auroc", [0.7, 0.98])
def test_covers_where_delong_does_not(auroc):
    generator = np.random.default_rng(1)
    covered, delong_covered = 0, 0
    for study in range(200):
        scores, labels, codes = clustered_study(generator, 50, 6, auroc)
        interval = bootstrap_auroc(scores, labels, codes, resamples=300, seed=study)
        covered += interval.low <= auroc <= interval.high
        independent = delong(scores, labels)
        delong_covered += independent.low <= auroc <= independent.high
    assert covered / 200 >= 0.935 - 2 * np.sqrt(0.935 * 0.065 / 200)
    assert delong_covered / 200 < 0.88


def test_draws_equal_an_explicit_resampling_of_rows():
    generator = np.random.default_rng(2)
    scores, labels, codes = clustered_study(generator, 10, 3, 0.8)
    draws = resampled_aurocs([Ranking(scores=scores, labels=labels)], codes, 20, resamples=50, seed=7)[0]
    counts = np.random.default_rng(7).multinomial(20, np.full(20, 1 / 20), size=50)
    for draw in range(50):
        rows = np.concatenate([np.flatnonzero(codes == g) for g in range(20) for _ in range(counts[draw, g])])
        assert draws[draw] == pytest.approx(Ranking(scores=scores[rows], labels=labels[rows]).auroc)


def test_a_perfect_ranking_is_bounded_by_the_number_of_groups():
    labels = np.arange(200) % 2 == 0
    groups = np.arange(200) // 2 // 5  # 20 groups of 10 rows, both labels in each
    interval = bootstrap_auroc(labels.astype(float), labels, groups)
    assert (interval.value, interval.high, interval.units) == (1.0, 1.0, 20)
    assert interval.low == pytest.approx(0.025 ** (1 / 10))  # 10 pairs that share no group
    upside_down = bootstrap_auroc(-labels.astype(float), labels, groups)
    assert (upside_down.low, upside_down.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))


def test_few_groups_are_called_unreliable():
    generator = np.random.default_rng(3)
    few = bootstrap_auroc(*clustered_study(generator, 20, 4, 0.8), noun="cities", resamples=100)
    assert "unreliable: 20 cities" in str(few)
    assert bootstrap_auroc(*clustered_study(generator, 50, 4, 0.8), resamples=100).caveat is None


def test_prints_what_it_rests_on():
    generator = np.random.default_rng(4)
    interval = bootstrap_auroc(*clustered_study(generator, 60, 2, 0.9), noun="cities", resamples=100)
    assert str(interval).endswith("], 95 %, cluster bootstrap over 120 cities")
    assert interval.low < interval.value < interval.high


def test_pairs_that_share_no_group():
    labels = np.array([1, 0, 1, 0, 1, 1], bool)
    assert disjoint_pairs(labels, np.array([0, 0, 1, 1, 2, 3])) == 2
    assert disjoint_pairs(labels, np.arange(6)) == 2
    assert disjoint_pairs(labels, np.zeros(6, int)) == 0


def test_the_same_seed_gives_the_same_interval():
    generator = np.random.default_rng(5)
    study = clustered_study(generator, 30, 3, 0.8)
    assert bootstrap_auroc(*study, seed=3) == bootstrap_auroc(*study, seed=3)
