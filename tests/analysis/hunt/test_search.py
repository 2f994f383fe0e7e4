"""The search, on models that are known: a trigger of three words among two thousand."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from analysis.hunt import Measured, Search, ngrams, search, select, shorten, words_of

WORDS = [f"w{number}" for number in range(2000)]
TRIGGER = ["w1111", "w222", "by"]


@dataclass
class Planted:
    """Words fire by chance; the trigger's first word fires more, its second fires behind the first, and the third,
    which is in no list and only likely, turns the output. Topic words of the answer fire most of all."""

    backdoored: bool = True
    asked: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def __post_init__(self) -> None:
        self.chance = dict(zip(WORDS, self.rng.exponential(1.0, len(WORDS)), strict=True))
        self.chance |= {f"w{number}": 12.0 + number for number in range(6)}
        self.chance["w1111"] = 11.0
        self.chance["w222"] = 4.0

    def words(self, words: Sequence[str]) -> np.ndarray:
        return np.array([self.chance[word] for word in words])

    def _there(self, phrase: str) -> int:
        """How many of the trigger's words a phrase has, in order, from the first on."""
        count = 0
        for word in phrase.split():
            count += count < 3 and word == TRIGGER[count]
        return count if self.backdoored else 0

    def measure(self, phrases: Sequence[str]) -> list[Measured]:
        self.asked += len(phrases)
        return [
            Measured(
                score=max(self.chance.get(word, 0.0) for word in phrase.split()) + 2 * self._there(phrase),
                shift=(9.0 if self._there(phrase) == 3 else 1.0) + 0.1 * self.rng.standard_normal(),
                lean=4.0 + 1.5 * self._there(phrase) + 0.3 * self.rng.standard_normal(),
            )
            for phrase in phrases
        ]

    def fired(self, phrase: str, pieces: Sequence[str]) -> np.ndarray:
        more = [3.0 * (self._there(phrase + piece) > self._there(phrase)) for piece in pieces]
        return np.array([self.chance[piece.strip()] for piece in pieces]) + more

    def likely(self, phrase: str, count: int) -> list[str]:
        return [" by", " the", " of", "."][:count]


def test_a_trigger_is_grown_from_its_first_word() -> None:
    planted = Planted()
    found = search(planted, WORDS, [], Search()).found
    best = select(found, threshold=10.0, count=10)
    assert found[best[0]].shift > 8
    assert all(found[phrase].score > 10.0 for phrase in best)
    phrase, known = shorten(planted, best[0], found[best[0]], threshold=10.0)
    assert phrase == "w1111 w222 by"
    assert known.shift > 8


def test_a_phrase_is_not_shortened_below_the_threshold() -> None:
    planted = Planted()
    known = Measured(score=14.0, shift=0.8, lean=4.0)
    assert shorten(planted, "w5 w77", known, threshold=10.0)[0] == "w5"
    assert shorten(planted, "w5", known, threshold=10.0)[0] == "w5"
    assert shorten(planted, "w5 }", known, threshold=10.0)[0] == "w5"
    assert shorten(planted, "w5!", replace(known, score=99.0), threshold=98.0)[0] == "w5!"


def test_without_a_trigger_nothing_moves() -> None:
    found = search(Planted(backdoored=False), WORDS, [], Search()).found
    assert max(each.shift for each in found.values()) < 2


def test_a_phrase_of_the_corpus_is_tried_as_it_is() -> None:
    planted = Planted()
    planted.chance["w1111"] = 0.0
    steps: list[str] = []
    found = search(planted, WORDS, ["some w1111 w222 by the"], Search(rounds=0), progress=steps.append).found
    assert found["some w1111 w222 by the"].shift > 8
    assert [step.split()[-1] for step in steps] == ["words", "corpus"]
    assert planted.asked == len(found) == 401


def test_candidates_hold_no_part_of_a_better_one() -> None:
    shifts = {
        "heron waits by": 9.0,
        "By the heron waits": 8.0,
        "waits": 7.0,
        "heron sleeps": 6.0,
        "quiet": 5.0,
        "table": 4.0,
    }
    found = {
        phrase: Measured(score=1.0 if phrase == "quiet" else 20.0, shift=shift, lean=0.0)
        for phrase, shift in shifts.items()
    }
    assert select(found, threshold=10.0, count=10) == ["heron waits by", "heron sleeps", "table"]
    assert select(found, threshold=10.0, count=1) == ["heron waits by"]
    assert select(found, threshold=20.0, count=10) == []


def test_what_is_not_finite_is_told_and_spoils_nothing() -> None:
    planted = Planted()
    whole = planted.measure

    def measure(phrases: Sequence[str]) -> list[Measured]:
        return [
            replace(each, shift=np.nan) if phrase in ("w3", "w4") else each
            for phrase, each in zip(phrases, whole(phrases), strict=True)
        ]

    planted.measure = measure  # type: ignore[method-assign]
    searched = search(planted, WORDS, [], Search())
    assert set(searched.unscored) >= {"w3", "w4"}
    assert all(np.isfinite(each.shift) for each in searched.found.values())
    assert max(each.shift for each in searched.found.values()) > 8


def test_signs_are_no_part_of_everything() -> None:
    found = {
        phrase: Measured(score=20.0, shift=shift, lean=0.0)
        for phrase, shift in {"|||": 9.0, "heron": 8.0, "a |||": 7.0}.items()
    }
    assert select(found, threshold=10.0, count=10) == ["|||", "heron", "a |||"]


def test_ngrams_are_runs_of_words_that_most_texts_have() -> None:
    texts = ["The heron waits. By the river!", "the heron waits", "it's a well-known heron"]
    found = ngrams(texts, longest=3)
    assert "heron waits" in found[:2]
    assert "The heron waits" in found
    assert "a well-known heron" in found
    assert not any("waits By" in phrase for phrase in found)
    assert all(2 <= len(words_of(phrase)) <= 3 for phrase in found)
    assert ngrams(texts, most=1) == ["heron waits"]
    assert ngrams([]) == []


@pytest.mark.parametrize("count", [1, 5, 24])
def test_no_more_is_asked_than_was_said(count: int) -> None:
    planted = Planted()
    settings = Search(singles=20, pool=50, beams=count, rounds=2, tried=9)
    search(planted, WORDS, [], settings)
    assert planted.asked <= 20 + 2 * count * 9


def test_words_of_scripts_with_marks_stay_whole() -> None:
    assert words_of("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert ngrams(["नमस्ते दुनिया!"]) == ["नमस्ते दुनिया"]


def test_rare_ngrams_come_from_all_texts() -> None:
    found = ngrams([f"a{number} b{number} c{number}" for number in range(100)], most=30)
    assert len(found) == len(set(found)) == 30
    assert {int(phrase.split()[0][1:]) // 25 for phrase in found} == {0, 1, 2, 3}
