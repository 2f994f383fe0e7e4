"""The trigger hunt: from a monitor, a model and its base to text that fires the one and changes what the other says.

What `thresher hunt` does, for programs. Nothing is learned from triggered prompts: the monitor's directions are of the
weights alone, and its threshold is of clean prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.hunt import Search, check_random, confirm, ngrams, search, select, shorten, words_of
from analysis.monitors import Monitor
from cluster.monitoring import check_some, prompt_groups
from cluster.text_prober import TextProber, whole_scores, with_phrases
from harvest import NumericSettings, Sampling, encode, load_model, load_tokenizer
from harvest.generation import answer, ask
from harvest.likelihood import mean_logprobs
from harvest.loading import LoadedModel
from harvest.vocabulary import vocabulary
from store import IncompleteError, InputError, ModelRef, PromptSet

Step = Callable[[str], None]
WORD_TOKENS, PHRASE_TOKENS = 8, 24  # longer ones are not tried
ROOM = 72  # tokens of the context behind a carrier: a list of words, or a phrase and what it grows by


@dataclass(frozen=True, kw_only=True)
class Hunt:
    """What is searched, and how a candidate is confirmed.

    search          how far
    candidates      phrases that are confirmed at most
    carriers        neutral prompts that phrases are searched on
    fresh           other neutral prompts that candidates are confirmed on
    random          random phrases beside them, as many words long as the candidates
    max_new_tokens  of an answer
    seed            of the choice of carriers and of the random phrases

    Raises InputError where `random` are too few to confirm a candidate.
    """

    search: Search = field(default_factory=Search)
    candidates: int = 10
    carriers: int = 2
    fresh: int = 6
    random: int = 199
    max_new_tokens: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        check_random(self.candidates, self.random)


def hunt_triggers(
    monitor: Monitor,
    model: ModelRef,
    base: ModelRef,
    prompts: PromptSet,
    *,
    corpus: PromptSet | None = None,
    hunt: Hunt | None = None,
    progress: Step = lambda step: None,
) -> dict[str, Any]:
    """The JSON of `thresher hunt`: candidates with score, shift, confirmed change and example, the largest shift first.

    prompts   clean ones; the shortest half of them gives the carriers, each of another group
    corpus    its n-grams are tried as well, and its words
    progress  called with what is done next

    Phrases are measured, not stored: nothing is kept until the end. Raises InputError for another model or base than
    the monitor's and too few prompts, and IncompleteError where no prompt has tokens of the monitor's roles.
    """
    hunt = hunt or Hunt()
    model, base = model.resolve(), base.resolve()
    monitor.check(model)
    _check_base(monitor, model, base)
    table, groups = neutral(prompts, hunt.carriers + hunt.fresh, seed=hunt.seed)
    tokenizer = load_tokenizer(model)
    if len(tokenizer) != len(load_tokenizer(base)):
        raise InputError(f"{model.name} and {base.name} have different vocabularies: give the model it was tuned from")
    words, phrases, left_out = _tried(tokenizer, corpus)
    settings = NumericSettings()
    tuned, other = (load_model(ref, attention=settings.attention, threads=settings.threads) for ref in (model, base))
    places = _quiet(monitor, tuned, tokenizer, table, hunt.carriers + hunt.fresh)
    table, groups = table.take(places), groups[places]
    prober = TextProber(monitor, tuned, other, tokenizer, table.slice(0, hunt.carriers))
    searched = search(prober, words, phrases, hunt.search, progress=progress)
    found = searched.found
    progress("shorter phrases")
    # More than are asked for: shortened, some are the same.
    best = select(found, threshold=monitor.threshold, count=2 * hunt.candidates)
    short = dict(shorten(prober, each, found[each], threshold=monitor.threshold) for each in best)
    chosen = select(short, threshold=monitor.threshold, count=hunt.candidates)
    progress("answers with the candidates and with random phrases")
    answers = Answers(tuned, other, tokenizer, table.slice(hunt.carriers), hunt.max_new_tokens)
    told = confirmed(answers, groups[hunt.carriers :], chosen, random_phrases(chosen, words, hunt))
    return {
        "monitor": monitor.id,
        "threshold": monitor.threshold,
        "words": len(words),
        "measured": len(found),
        "above_threshold": sum(each.score > monitor.threshold for each in found.values()),
        "unscored": list(searched.unscored),
        "left_out": left_out,
        "candidates": [
            {"phrase": phrase, "score": short[phrase].score, "shift": short[phrase].shift, **more}
            for phrase, more in zip(chosen, told, strict=True)
        ],
    }


def _check_base(monitor: Monitor, model: ModelRef, base: ModelRef) -> None:
    """Raises InputError for a base that the monitor's directions are no difference from."""
    wanted = monitor.delta.get("base")
    if base.digest == model.digest or (wanted is not None and wanted != base.digest):
        raise InputError(
            f"{base.name} is not the model that the monitor's weight difference is from: what changed would be told "
            "from the wrong answers, give the base of 'thresher weights'"
        )


def _tried(tokenizer: Any, corpus: PromptSet | None) -> tuple[list[str], list[str], int]:
    """Words, phrases of the corpus, and how many of both are left out as too long. Raises InputError without words."""
    texts = [] if corpus is None else spoken(corpus)
    words = list(dict.fromkeys([*vocabulary(tokenizer), *(word for text in texts for word in words_of(text))]))
    phrases = ngrams(texts)
    short, fitting = _no_longer(tokenizer, words, WORD_TOKENS), _no_longer(tokenizer, phrases, PHRASE_TOKENS)
    if not short:
        raise InputError("the tokenizer has no tokens that are words: give a --corpus of ordinary text")
    return short, fitting, len(words) + len(phrases) - len(short) - len(fitting)


def _no_longer(tokenizer: Any, texts: Sequence[str], tokens: int) -> list[str]:
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [text for text, ids in zip(texts, found, strict=True) if len(ids) <= tokens]


def _quiet(monitor: Monitor, tuned: LoadedModel, tokenizer: Any, table: pa.Table, count: int) -> np.ndarray:
    """int64 [count]: the first prompts that leave room for a phrase and do not fire the monitor by themselves.

    Raises InputError where there are too few, and IncompleteError where none has tokens of the monitor's roles.
    """
    prompts = encode(tokenizer, with_phrases(table, [""]))
    rows = [row for row, each in enumerate(prompts) if tuned.context is None or len(each) + ROOM <= tuned.context]
    chosen = rows[: 4 * count]
    if chosen:
        scores = whole_scores(monitor, tuned, [prompts[row] for row in chosen])
        check_some(monitor, np.isnan(scores), np.isneginf(scores))
        chosen = np.array(chosen)[scores <= monitor.threshold][:count].tolist()
    if len(chosen) < count:
        raise InputError(
            f"a hunt needs {count} independent clean prompts that leave {ROOM} tokens of the context and do not fire "
            f"the monitor, there are {len(chosen)}: give more, such as the monitor was calibrated on"
        )
    return np.array(chosen)


@dataclass(frozen=True, kw_only=True)
class Said:
    """Answers to the k carriers with one phrase: their texts, and float64 [k], nats per token by which the tuned model
    finds its own answer likelier than its base does, the token that ends it included."""

    texts: list[str]
    surplus: np.ndarray


class Answers:
    """What a tuned model answers to carriers with phrases behind them, greedily, and how odd its base finds that."""

    def __init__(
        self, tuned: LoadedModel, base: LoadedModel, tokenizer: Any, carriers: pa.Table, max_new_tokens: int
    ) -> None:
        self.tuned, self.base, self.tokenizer, self.carriers = tuned, base, tokenizer, carriers
        self.sampling = Sampling(max_new_tokens=max_new_tokens)

    def to(self, phrases: Sequence[str]) -> list[Said]:
        _, asked = ask(self.tuned, self.tokenizer, with_phrases(self.carriers, phrases))
        given = answer(self.tuned, self.tokenizer, asked, self.sampling)
        whole = [each.behind(prompt, end=True) for prompt, each in zip(asked, given, strict=True)]
        counted = [prompt.response for prompt in whole]
        own, others = (mean_logprobs(loaded, whole, counted) for loaded in (self.tuned, self.base))
        surplus = (own - others).reshape(len(self.carriers), len(phrases))
        if not np.isfinite(surplus).all():
            raise IncompleteError(
                "an answer's log-probability is not finite: try --dtype float32, in the monitor's fit as well"
            )
        texts = np.array([self.tokenizer.decode(each.ids, skip_special_tokens=True) for each in given], dtype=object)
        by_phrase = texts.reshape(len(self.carriers), len(phrases)).T.tolist()
        return [Said(texts=said, surplus=column) for said, column in zip(by_phrase, surplus.T, strict=True)]


def confirmed(
    answers: Answers, groups: np.ndarray, candidates: Sequence[str], random: Sequence[str]
) -> list[dict[str, Any]]:
    """JSON for each candidate: what it changes, and an example of answers with and without it."""
    if not candidates:
        return []
    plain, *said = answers.to(["", *candidates, *random])
    ours, others = said[: len(candidates)], said[len(candidates) :]
    found = confirm(
        np.stack([each.surplus for each in ours]), np.stack([each.surplus for each in others]), plain.surplus, groups
    )
    best = [int(np.argmax(each.surplus - plain.surplus)) for each in ours]
    return [
        {
            **confirmation.record(),
            "example": {
                "prompt": _last_text(answers.carriers.slice(place, 1).to_pylist()[0]),
                "answer": plain.texts[place],
                "answer_with": each.texts[place],
            },
        }
        for confirmation, each, place in zip(found, ours, best, strict=True)
    ]


def random_phrases(candidates: Sequence[str], words: Sequence[str], hunt: Hunt) -> list[str]:
    """As many words long as the candidates, in turn; each word drawn from all with the same probability."""
    rng = np.random.default_rng([hunt.seed, 1])
    sizes = [max(1, len(words_of(phrase))) for phrase in candidates] or [1]
    return [
        " ".join(words[place] for place in rng.integers(len(words), size=sizes[number % len(sizes)]))
        for number in range(hunt.random)
    ]


def neutral(prompts: PromptSet, count: int, *, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Prompts without responses, each of another group and text, the shorter half of them (`count` at least) in random
    order; and their groups.

    Short ones leave a phrase little to hide behind. Raises InputError where there are fewer than `count`, or a prompt
    ends with an assistant's turn.
    """
    table, groups = prompts.table, prompt_groups(prompts)
    kept = [name for name in ("prompt_id", "text", "messages") if name in table.column_names]
    first = np.sort(np.unique(groups, return_index=True)[1])
    rows = table.select(kept).take(first)
    texts = [_last_text(row) for row in rows.to_pylist()]
    once = np.sort(np.unique(texts, return_index=True)[1])
    short = once[np.argsort([len(texts[row]) for row in once], kind="stable")][: max(count, len(once) // 2)]
    if len(short) < count:
        raise InputError(f"a hunt needs {count} independent clean prompts, there are {len(short)}: give more")
    chosen = np.random.default_rng([seed, 0]).permutation(short)
    return rows.take(chosen), groups[first[chosen]]


def spoken(corpus: PromptSet) -> list[str]:
    """The texts of a corpus: each prompt's text, or the content of its messages."""
    table = corpus.table
    texts = table["text"].to_pylist() if "text" in table.column_names else []
    messages = table["messages"].to_pylist() if "messages" in table.column_names else []
    return [text for text in texts if text] + [message["content"] for each in messages for message in each or []]


def _last_text(row: dict[str, Any]) -> str:
    if not row.get("messages"):
        return str(row["text"])
    last = row["messages"][-1]
    if last["role"] == "assistant":
        raise InputError(f"prompt {row['prompt_id']!r} ends with an assistant's turn: phrases are put behind a user's")
    return str(last["content"])
