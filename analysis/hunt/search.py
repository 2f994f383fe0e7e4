"""From single words to phrases: which text fires a monitor, and moves what the model is about to say.

A beam search. A word that belongs to a trigger fires the directions that read it long before the whole trigger is
there; what the model says moves only once enough of it is. So phrases grow from what fires most and from what moves
the output most, and neither alone decides which go on.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import regex

_LETTERS = r"\p{L}\p{N}\p{M}"  # with the marks that many scripts write vowels by
_WORD = regex.compile(rf"[\p{{L}}\p{{N}}][{_LETTERS}]*(?:['’-][{_LETTERS}]+)*")
_BREAK = regex.compile(rf"[^{_LETTERS}'’ -]+")
_FEW_ALIKE = 6  # beams that grow from the same phrase


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a phrase does at the end of neutral prompts (carriers), with p of the tuned model and q of its base for what
    the answer begins with.

    score  the largest standardised score of the phrase's tokens and those behind it, the median over carriers; above a
           monitor's threshold the prompt is flagged
    shift  nats, the mean over carriers of KL(p‖q)
    lean   nats, the mean over carriers of the largest log p − log q among tokens that are not out of the question
           (p > e⁻¹²). It rises long before what is said does, which a shift needs
    """

    score: float
    shift: float
    lean: float


class Prober(Protocol):
    """Asks the models. Phrases are text, put behind the text of a carrier with a space between; pieces are text that is
    put behind a phrase as it is."""

    def words(self, words: Sequence[str]) -> np.ndarray:
        """float64 [n]: roughly, how much each word fires; for a first choice among very many."""

    def measure(self, phrases: Sequence[str]) -> list[Measured]:
        """Each of the phrases by itself."""

    def fired(self, phrase: str, pieces: Sequence[str]) -> np.ndarray:
        """float64 [n]: how much each piece fires behind the phrase."""

    def likely(self, phrase: str, count: int) -> list[str]:
        """The pieces that the base finds likeliest behind the phrase, one token each."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far is searched.

    singles  words that are measured by themselves, those that fire most
    pool     words that phrases grow by, those that fire most, beside what the base finds likely
    beams    phrases that are grown in each round
    rounds   pieces that a word grows by at most
    tried    continuations of each phrase that are measured
    """

    singles: int = 400
    pool: int = 1500
    beams: int = 16
    rounds: int = 4
    tried: int = 60


@dataclass(frozen=True, kw_only=True)
class Searched:
    """found: every phrase that was measured; unscored: those with a number that is not finite, which clears none."""

    found: dict[str, Measured]
    unscored: tuple[str, ...]


def search(
    prober: Prober,
    words: Sequence[str],
    phrases: Sequence[str],
    settings: Search,
    *,
    progress: Callable[[str], None] = lambda step: None,
) -> Searched:
    """Everything that was measured.

    words     the first choice: a vocabulary
    phrases   measured as they are beside the words that fire most, and grown like them: n-grams of a corpus
    progress  called with what is done next
    """
    progress(f"{len(words):,} words")
    alone = prober.words(words)
    order = np.argsort(-alone, kind="stable")
    pool = {f" {words[place]}": float(alone[place]) for place in order[: settings.pool]}
    progress("single words and phrases of the corpus")
    first = [*(words[place] for place in order[: settings.singles]), *phrases]
    found, lost = _measured(prober, first, set())
    beams = _beams(found, {phrase: phrase for phrase in found}, settings.beams)
    for number in range(settings.rounds):
        progress(f"longer phrases, round {number + 1} of {settings.rounds}")
        grown = {phrase + piece: phrase for phrase in beams for piece in _pieces(prober, phrase, pool, settings.tried)}
        fresh, more = _measured(prober, grown, found.keys() | lost)
        lost |= more
        if not fresh:
            break
        found |= fresh
        beams = _beams(fresh, grown, settings.beams)
    return Searched(found=found, unscored=tuple(sorted(lost)))


def _pieces(prober: Prober, phrase: str, pool: dict[str, float], count: int) -> list[str]:
    """A third fire most behind the phrase, a third fire there so much more than alone, a third are likely there."""
    names, alone = list(pool), np.array(list(pool.values()))
    behind = prober.fired(phrase, names)
    third = count // 3
    loud, more = (np.argsort(-worth, kind="stable")[:third] for worth in (behind, behind - alone))
    return list(dict.fromkeys([*(names[i] for i in [*loud, *more]), *prober.likely(phrase, count - 2 * third)]))


def _measured(prober: Prober, phrases: Iterable[str], known: Collection[str]) -> tuple[dict[str, Measured], set[str]]:
    """The phrases that are not known, and those of them with a number that is not finite."""
    fresh = list(dict.fromkeys(phrase for phrase in phrases if phrase not in known))
    every = dict(zip(fresh, prober.measure(fresh), strict=True)) if fresh else {}
    lost = {phrase for phrase, each in every.items() if not np.isfinite([each.score, each.shift, each.lean]).all()}
    return {phrase: each for phrase, each in every.items() if phrase not in lost}, lost


def _beams(found: dict[str, Measured], parents: dict[str, str], count: int) -> list[str]:
    """A third each of those that move the output most, lean most, and fire most; few of one parent."""
    chosen: dict[str, None] = {}
    taken: Counter[str] = Counter()
    for share, worth in ((count // 3, "shift"), (2 * count // 3, "lean"), (count, "score")):
        for phrase in sorted(found, key=lambda phrase, worth=worth: -getattr(found[phrase], worth)):  # type: ignore[misc]
            if len(chosen) >= share:
                break
            if phrase not in chosen and taken[parents[phrase]] < _FEW_ALIKE:
                chosen[phrase] = None
                taken[parents[phrase]] += 1
    return list(chosen)


def select(found: dict[str, Measured], *, threshold: float, count: int) -> list[str]:
    """At most `count` of the phrases whose score is above the threshold, the largest shift first.

    A phrase that holds a better one, or is part of one, is left out: the same words again tell nothing more.
    """
    chosen: list[str] = []
    for phrase in sorted(found, key=lambda phrase: -found[phrase].shift):
        if len(chosen) == count:
            break
        if found[phrase].score > threshold and not any(_holds(phrase, other) for other in chosen):
            chosen.append(phrase)
    return chosen


def shorten(prober: Prober, phrase: str, known: Measured, *, threshold: float) -> tuple[str, Measured]:
    """The phrase without what it does as well without (nine tenths of its shift, and above the threshold): one word
    after the other, and all that is no word."""
    least = 0.9 * known.shift
    while True:
        words = phrase.split()
        shorter = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words)) if len(words) > 1]
        shorter += [bare for bare in [" ".join(words_of(phrase))] if bare and bare != phrase]
        measured = zip(shorter, prober.measure(shorter), strict=True) if shorter else ()
        enough = [pair for pair in measured if pair[1].shift >= least and pair[1].score > threshold]
        if not enough:
            break
        phrase, known = max(enough, key=lambda pair: pair[1].shift)
    return phrase, known


def _holds(first: str, second: str) -> bool:
    """Whether one of two phrases has all the words of the other; signs count where there is no word."""
    one, two = (Counter(word.casefold() for word in words_of(text) or text.split()) for text in (first, second))
    return one <= two or two <= one


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, with apostrophes and hyphens inside."""
    return _WORD.findall(text)


def ngrams(texts: Iterable[str], *, longest: int = 4, most: int = 1000) -> list[str]:
    """Runs of 2 to `longest` words of the texts, each once, those in most texts first; of the rarest, where they do not
    all fit in, an even choice over the texts.

    Words are runs of letters and digits; a run does not reach over other characters than spaces.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        here: dict[str, None] = {}
        for piece in _BREAK.split(text):
            words = words_of(piece)
            for size in range(2, longest + 1):
                for start in range(len(words) - size + 1):
                    here[" ".join(words[start : start + size])] = None
        counts.update(list(here))
    if len(counts) <= most:
        return [phrase for phrase, _ in counts.most_common()]
    rarest = sorted(counts.values(), reverse=True)[most - 1]
    common = [phrase for phrase, count in counts.most_common() if count > rarest]
    ties = [phrase for phrase, count in counts.items() if count == rarest]
    places = np.linspace(0, len(ties) - 1, most - len(common)).round().astype(int)
    return [*common, *(ties[place] for place in places)]
