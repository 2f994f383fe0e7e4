"""Curves over folds: their area is the AUROC within folds, and no fold's scale has a part in them."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve as sklearn_roc

from analysis.probes.fit import fit_probe
from analysis.probes.held_out import HeldOut
from analysis.statistics.ranking import auroc
from tests.analysis.probes.study import planted, statements, write


def drawn(n: int, *, ties: bool, seed: int) -> HeldOut:
    rng = np.random.default_rng(seed)
    label, fold = rng.random(n) < 0.4, rng.integers(0, 3, n)
    scores = rng.normal(label * 1.2, 1.0)
    scores = np.round(scores) if ties else scores
    # Each fold's model has a scale of its own.
    return HeldOut(
        scores=(scores * (1 + 9 * fold) - 50 * fold).astype(np.float32), label=label, fold=fold,
        group=np.arange(n).astype(str),
    )  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_the_auroc_within_folds(ties: bool, seed: int) -> None:
    held = drawn(90, ties=ties, seed=seed)
    rates, recalls = held.roc()
    assert np.trapezoid(recalls, rates) == pytest.approx(auroc(held.scores, held.label, strata=held.fold), abs=1e-12)
    assert (np.diff(rates) >= 0).all()
    assert (np.diff(recalls) >= -1e-12).all()
    assert (rates[0], recalls[0], rates[-1], recalls[-1]) == (0.0, 0.0, 1.0, pytest.approx(1.0))


@pytest.mark.parametrize("ties", [False, True])
def test_one_fold_is_scikit_learns_curve(ties: bool) -> None:
    held = drawn(60, ties=ties, seed=9)
    one = HeldOut(scores=held.scores, label=held.label, fold=np.zeros(60, int), group=held.group)
    rates, recalls = one.roc()
    theirs, their_recalls, _ = sklearn_roc(held.label, held.scores, drop_intermediate=False)
    assert rates[::2].tolist() == np.unique(theirs).tolist()
    for rate, begins, ends in zip(rates[::2], recalls[::2], recalls[1::2], strict=True):
        here = their_recalls[theirs == rate]
        assert (begins, ends) == (pytest.approx(here.min()), pytest.approx(here.max()))


def test_a_fold_of_one_class_has_no_curve() -> None:
    held = drawn(60, ties=False, seed=1)
    fold = np.where(np.arange(60) < 5, 7, held.fold)
    label = held.label | (fold == 7)
    with_it = HeldOut(scores=held.scores, label=label, fold=fold, group=held.group).roc()
    rest = fold != 7
    without = HeldOut(scores=held.scores[rest], label=label[rest], fold=fold[rest], group=held.group[rest]).roc()
    np.testing.assert_array_equal(with_it, without)


def test_standardised_scores_have_no_scale_of_their_folds() -> None:
    held = drawn(300, ties=False, seed=2)
    told = held.standardised()
    for fold in range(3):
        assert told[held.fold == fold].mean() == pytest.approx(0, abs=1e-6)
        assert told[held.fold == fold].std() == pytest.approx(1, abs=1e-6)
        assert auroc(told, held.label, strata=held.fold) == auroc(held.scores, held.label, strata=held.fold)


def test_a_fit_keeps_the_scores_that_its_figure_is_of(tmp_path) -> None:
    prompts = statements(40)
    store = write(tmp_path / "store", prompts, planted(prompts, {"resid_post.1": 1.0, "resid_post.2": 2.0}))
    fitted = fit_probe(store, kind="lda", baselines=False, permutations=0, resamples=50)
    rates, recalls = fitted.held_out.roc()
    assert np.trapezoid(recalls, rates) == pytest.approx(fitted.auroc.value, abs=1e-12)
    assert "held_out" not in fitted.record()
    np.testing.assert_array_equal(fitted.held_out.label, prompts.labels("label").astype(bool))
    assert 0 < fitted.held_out.probabilities()[fitted.held_out.label].mean() < 1
