"""Folds split by group, evenly and the same whatever the order of the rows."""

import numpy as np
import pytest

from analysis.probes.folds import LeaveOut, deal_folds
from store.errors import InputError


def test_no_group_is_split_and_every_fold_has_both_classes():
    generator = np.random.default_rng(0)
    groups = np.array([f"g{i}" for i in generator.integers(0, 60, 500)])
    labels = np.array([int(group[1:]) % 3 == 0 for group in groups])
    folds = deal_folds(groups, labels, folds=5)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    counts = [(len(set(groups[(folds == k) & labels])), len(set(groups[(folds == k) & ~labels]))) for k in range(5)]
    assert counts == [(4, 8)] * 5


def test_the_order_of_rows_decides_nothing_and_the_seed_does():
    groups = np.array([f"g{i // 2}" for i in range(200)])
    labels = np.arange(200) % 2 == 0
    folds = deal_folds(groups, labels, folds=4)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(deal_folds(groups[order], labels[order], folds=4), folds[order])
    assert (deal_folds(groups, labels, folds=4, seed=1) != folds).any()


@pytest.mark.parametrize(("count", "folds"), [(10, 2), (4, 5)])
def test_too_few_groups_or_folds_are_refused(count, folds):
    groups = np.repeat(np.arange(count), 2)
    with pytest.raises(InputError, match="few"):
        deal_folds(groups, np.arange(2 * count) % 2 == 0, folds=folds)


def test_sets_left_out():
    plan = LeaveOut(4)
    assert plan.sets[:4] == ((0,), (1,), (2,), (3,))
    assert len(plan.sets) == 4 + 6
    for k in range(4):
        for j in range(4):
            left_out = {fold for fold in range(4) if not plan.trains[plan.without[k, j], fold]}
            assert left_out == {k, j}
