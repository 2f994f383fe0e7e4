"""Curves, calibration, drift and paired comparison against scikit-learn, scipy and simulation."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve

from analysis.statistics.bootstrap import bootstrap_auroc
from analysis.statistics.calibration import brier, calibration_error, reliability
from analysis.statistics.comparison import auroc_gain
from analysis.statistics.curves import average_precision, partial_auroc, roc_curve
from analysis.statistics.drift import drift_p, kolmogorov_smirnov, mean_discrepancy, stability_index
from store.errors import InputError


@pytest.fixture(params=[5, 10**6])
def study(request):
    generator = np.random.default_rng(request.param)
    labels = generator.random(400) < 0.3
    return generator.integers(0, request.param, 400) + labels * request.param // 3, labels


def test_curve_areas_equal_scikit_learn(study):
    scores, labels = study
    ours, theirs = roc_curve(scores, labels), sklearn_curve(labels, scores, drop_intermediate=False)
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, reference)
    for largest in (0.01, 0.1, 0.37, 1.0):
        expected = roc_auc_score(labels, scores, max_fpr=largest)
        assert partial_auroc(scores, labels, largest_fpr=largest) == pytest.approx(expected)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))


def test_one_class_has_no_curve():
    with pytest.raises(InputError):
        roc_curve(np.arange(3.0), np.ones(3, bool))


def test_calibration():
    generator = np.random.default_rng(0)
    probabilities = generator.random(20_000)
    labels = generator.random(20_000) < probabilities
    assert brier(probabilities, labels) == pytest.approx(brier_score_loss(labels, probabilities))
    assert calibration_error(probabilities, labels) < 0.02
    assert calibration_error(probabilities, generator.random(20_000) < probabilities**2) == pytest.approx(
        1 / 6, abs=0.02
    )
    curve = reliability(probabilities, labels, np.arange(20_000), resamples=100)
    assert sum(part.rows for part in curve) == 20_000
    assert sum(part.frequency.low <= part.probability <= part.frequency.high for part in curve) >= 8


def test_a_paired_comparison_sees_what_single_intervals_do_not():
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(100), 4)
    labels = np.tile([True, True, False, False], 100)
    shared = generator.normal(size=400) + 1.2 * labels
    better = shared + 0.25 * labels + 0.05 * generator.normal(size=400)
    gain = auroc_gain(better, shared, labels, groups, resamples=500)
    assert 0 < gain.low < gain.value < gain.high
    single = [bootstrap_auroc(scores, labels, groups, resamples=500) for scores in (better, shared)]
    assert single[0].low < single[1].high
    wrong = 0
    for draw in range(100):
        alike = shared + 0.3 * generator.normal(size=(2, 400))
        nothing = auroc_gain(*alike, labels, groups, resamples=200, seed=draw)
        wrong += not nothing.low <= 0 <= nothing.high
    assert wrong <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


def test_kolmogorov_smirnov_equals_scipy():
    generator = np.random.default_rng(2)
    first, second = generator.integers(0, 9, 80).astype(float), generator.normal(4, 3, 60)
    assert kolmogorov_smirnov(first, second) == pytest.approx(stats.ks_2samp(first, second).statistic)


def test_mean_discrepancy_equals_the_sums_of_the_paper():
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(6, 2)), generator.normal(1, 1, size=(5, 2))
    pooled = np.concatenate([first, second])
    distances = [np.sum((a - b) ** 2) for i, a in enumerate(pooled) for b in pooled[i + 1 :]]

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / np.median(distances))

    def within(rows):
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return np.mean(pairs)

    cross = np.mean([kernel(a, b) for a in first for b in second])
    assert mean_discrepancy(first, second) == pytest.approx(within(first) + within(second) - 2 * cross)


def test_stability_index_of_known_shares():
    reference = np.arange(1000.0)
    current = np.r_[np.repeat(0.0, 750), np.repeat(999.0, 250)]
    expected = (0.75 - 0.5) * np.log(0.75 / 0.5) + (0.25 - 0.5) * np.log(0.25 / 0.5)
    assert stability_index(reference, current, bins=2) == pytest.approx(expected)


@pytest.mark.parametrize("paired", [True, False])
def test_drift_p_is_valid_for_clustered_rows_and_finds_a_shift(paired):
    generator = np.random.default_rng(4)
    p = []
    for study in range(100):
        codes = np.repeat(np.arange(20), 5)
        other = codes if paired else codes + 20
        effects = generator.normal(size=40)
        first = effects[codes] + generator.normal(size=100)
        second = effects[other] + generator.normal(size=100)
        p.append(drift_p(kolmogorov_smirnov, first, second, (codes, other), permutations=19, seed=study))
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 3 * np.sqrt(0.09 / 100)
    shifted = drift_p(kolmogorov_smirnov, first, second + 3, (codes, other), permutations=39)
    assert shifted == 1 / 40


def test_half_shared_groups_are_refused():
    with pytest.raises(InputError, match="both samples"):
        drift_p(kolmogorov_smirnov, np.zeros(2), np.ones(2), (np.array([0, 1]), np.array([1, 2])))
