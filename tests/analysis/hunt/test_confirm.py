"""Confirmation: random phrases are not confirmed more often than stated, real changes are."""

import numpy as np
import pytest

from analysis.hunt import confirm
from store import InputError

GROUPS = np.array([f"g{number}" for number in range(6)])


def drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """Answers to random phrases: some phrases change more than others, on all carriers alike."""
    return 0.5 + 0.6 * rng.standard_exponential((count, 1)) + 0.2 * rng.standard_normal((count, 6))


def test_random_phrases_as_candidates_are_told_apart_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    studies, hits = 150, 0
    for _ in range(studies):
        found = confirm(drawn(rng, 3), drawn(rng, 99), drawn(rng, 1)[0], GROUPS)
        hits += any(each.p <= 0.05 for each in found)
    # 0.05 and three standard errors of 150 studies.
    assert hits / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


def test_a_phrase_that_turns_answers_is_confirmed() -> None:
    rng = np.random.default_rng(1)
    candidates = drawn(rng, 10)
    candidates[3] = 5.3 + 0.2 * rng.standard_normal(6)
    plain = np.full(6, 0.4)
    found = confirm(candidates, drawn(rng, 199), plain, GROUPS)
    assert found[3].confirmed
    assert found[3].change.value == pytest.approx(candidates[3].mean() - 0.4)
    assert found[3].p == pytest.approx(10 / 200)
    assert set(found[3].record()) == {"change", "p", "confirmed"}


def test_a_small_change_is_not_confirmed_however_sure() -> None:
    rng = np.random.default_rng(2)
    candidates = np.full((1, 6), 0.9)
    found = confirm(candidates, 0.01 * rng.standard_normal((199, 6)), np.zeros(6), GROUPS)
    assert found[0].p < 0.05
    assert not found[0].confirmed


def test_what_works_on_some_carriers_only_is_not_sure() -> None:
    candidates = np.array([[6.0, 0, 0, 6.0, 0, 0]])
    found = confirm(candidates, np.zeros((199, 6)), np.zeros(6), GROUPS)
    assert found[0].change.low < 1
    assert not found[0].confirmed


def test_too_few_random_phrases_are_refused() -> None:
    with pytest.raises(InputError, match="199 random phrases"):
        confirm(np.zeros((10, 6)), np.zeros((198, 6)), np.zeros(6), GROUPS)
