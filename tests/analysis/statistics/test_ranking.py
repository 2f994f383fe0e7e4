"""AUROC and DeLong against definitions by brute force, scikit-learn and the cited formula."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from analysis.statistics.ranking import Ranking, auroc, delong
from store.errors import InputError


def brute_force(scores, labels, weights=None, strata=None):
    weights = np.ones(len(scores)) if weights is None else weights
    strata = np.zeros(len(scores)) if strata is None else strata
    concordant = every = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            if strata[i] == strata[j]:
                pair = weights[i] * weights[j]
                every += pair
                concordant += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return concordant, every


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_auroc_equals_scikit_learn_with_ties(levels):
    generator = np.random.default_rng(levels)
    labels = generator.random(300) < 0.3
    scores = generator.integers(0, levels, 300) + labels * levels // 4
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


def test_weighted_pairs_within_strata_equal_brute_force():
    generator = np.random.default_rng(0)
    labels = generator.random(60) < 0.5
    scores = generator.integers(0, 8, 60).astype(float)
    strata = generator.integers(0, 4, 60)
    weights = generator.integers(0, 4, (5, 60)).astype(float)
    concordant, every = Ranking(scores=scores, labels=labels, strata=strata).pairs(weights)
    for draw in range(5):
        assert (concordant[draw], every[draw]) == pytest.approx(brute_force(scores, labels, weights[draw], strata))


def test_scores_of_different_folds_are_not_compared():
    """Each fold ranks perfectly, on scales that pooling would mix up."""
    labels = np.array([1, 0, 1, 0], bool)
    scores = np.array([1.0, 0.0, 101.0, 100.0])
    assert auroc(scores, labels, strata=np.array([0, 0, 1, 1])) == 1.0
    assert auroc(scores, labels) == 0.75


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [1, 1]), ([1.0, np.nan], [0, 1]), ([1.0, 2.0, 3.0], [0, 1]), ([], [])],
)
def test_what_cannot_be_ranked_is_refused(scores, labels):
    with pytest.raises(InputError):
        auroc(np.array(scores), np.array(labels, bool))


def test_delong_equals_the_formula_of_the_paper():
    generator = np.random.default_rng(1)
    labels = generator.random(80) < 0.4
    scores = generator.normal(size=80).round(1) + labels
    kernel = (scores[labels][:, None] > scores[~labels]) + 0.5 * (scores[labels][:, None] == scores[~labels])
    variance = kernel.mean(1).var(ddof=1) / labels.sum() + kernel.mean(0).var(ddof=1) / (~labels).sum()
    interval = delong(scores, labels)
    value = kernel.mean()
    half = stats.norm.ppf(0.975) * np.sqrt(variance) / (value * (1 - value))
    expected = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + np.array([-half, half]))))
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))


def test_delong_at_a_perfect_ranking_gives_the_exact_bound():
    interval = delong(np.arange(40.0), np.arange(40) >= 20)
    assert (interval.value, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(0.025 ** (1 / 20))
