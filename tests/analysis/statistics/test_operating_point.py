"""Thresholds hold their false-positive rate on new groups, and are refused where controls cannot show it."""

import numpy as np
import pytest

from analysis.statistics.conformal import conformal_threshold
from analysis.statistics.operating_point import measure_flags, recall_at_fpr
from store.errors import InputError


@pytest.mark.parametrize(("controls", "fpr"), [(100, 0.01), (250, 0.01), (40, 0.1), (333, 0.05)])
def test_one_row_per_group_is_split_conformal(controls, fpr):
    """The ceil((n + 1)(1 - fpr))-th smallest control score, counted from 1."""
    scores = np.random.default_rng(controls).normal(size=controls)
    rank = int(np.ceil(round((controls + 1) * (1 - fpr), 9)))
    assert conformal_threshold(scores, np.arange(controls), fpr=fpr) == np.sort(scores)[rank - 1]


def test_holds_its_level_for_new_groups_of_unequal_size():
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(3000):
        sizes = generator.integers(1, 12, 61)
        groups = np.repeat(np.arange(61), sizes)
        # larger groups score higher, and rows of a group stand together
        scores = 0.2 * sizes[groups] + 2 * generator.normal(size=61)[groups]
        scores += generator.normal(size=len(groups))
        new = groups == 60
        threshold = conformal_threshold(scores[~new], groups[~new], fpr=0.1)
        rates.append(np.mean(scores[new] > threshold))
    error = np.std(rates) / np.sqrt(len(rates))
    assert 0.1 - 1 / 61 - 3 * error < np.mean(rates) < 0.1 + 2 * error


def test_tied_scores_are_flagged_together_or_not_at_all():
    assert conformal_threshold(np.array([0.0] * 15 + [1.0] * 5), np.arange(20), fpr=0.2) == 1.0
    assert conformal_threshold(np.array([0.0] * 17 + [1.0] * 3), np.arange(20), fpr=0.2) == 0.0


def test_too_few_control_groups_are_refused_however_many_rows_they_have():
    scores = np.random.default_rng(1).normal(size=5000)
    groups = np.arange(5000) % 99
    with pytest.raises(InputError, match="needs 100 control groups, there are 99"):
        conformal_threshold(scores, groups, fpr=0.01)
    labels = np.arange(5000) % 2 == 0
    point = recall_at_fpr(scores, labels, groups, calibration=groups < 80, fpr=0.01, noun="cities")
    assert point.record()["value"] is None
    assert "80 control cities" in str(point.record()["reason"])


def test_recall_and_realised_rate_come_from_other_groups():
    groups = np.repeat(np.arange(400), 2)
    labels = np.tile([True, False], 400)
    generator = np.random.default_rng(2)
    scores = generator.normal(size=800) + 3 * labels
    calibration = groups < 200
    point = recall_at_fpr(scores, labels, groups, calibration=calibration, fpr=0.05)
    threshold = np.sort(scores[calibration & ~labels])[int(np.ceil(201 * 0.95)) - 1]
    assert point.threshold == threshold
    assert point.recall is not None
    assert point.realised_fpr is not None
    assert point.recall.value == np.mean(scores[~calibration & labels] > threshold)
    assert point.realised_fpr.value == np.mean(scores[~calibration & ~labels] > threshold)
    assert set(point.record()) == {"value", "low", "high", "realised_fpr", "realised_fpr_interval"}


def test_a_group_on_both_sides_is_refused():
    with pytest.raises(InputError, match="whole groups"):
        recall_at_fpr(np.zeros(4), np.array([1, 0, 1, 0]), np.zeros(4), calibration=np.arange(4) < 2, fpr=0.5)


def test_controls_alone_have_no_recall():
    assert measure_flags(np.zeros(5), np.zeros(5, bool), np.arange(5), fpr=0.01).reason == (
        "no positive rows to measure on"
    )
