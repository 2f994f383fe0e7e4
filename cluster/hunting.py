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
from cluster.monitoring import prompt_groups
from cluster.text_prober import TextProber, with_phrases
from harvest import NumericSettings, Sampling, load_model, load_tokenizer
from harvest.generation import answer, ask
from harvest.likelihood import mean_logprobs
from harvest.loading import LoadedModel
from harvest.vocabulary import vocabulary
from store import InputError, ModelRef, PromptSet

Step = Callable[[str], None]


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

    Raises InputError for another model than the monitor's, a base with another vocabulary, and too few prompts.
    """
    hunt = hunt or Hunt()
    model, base = model.resolve(), base.resolve()
    monitor.check(model)
    table, groups = neutral(prompts, hunt.carriers + hunt.fresh, seed=hunt.seed)
    settings = NumericSettings()
    tuned, other = (load_model(ref, attention=settings.attention, threads=settings.threads) for ref in (model, base))
    tokenizer = load_tokenizer(model)
    if len(tokenizer) != len(load_tokenizer(base)):
        raise InputError(f"{model.name} and {base.name} have different vocabularies: give the model it was tuned from")
    prober = TextProber(monitor, tuned, other, tokenizer, table.slice(0, hunt.carriers))
    texts = [] if corpus is None else spoken(corpus)
    words = list(dict.fromkeys([*vocabulary(tokenizer), *(word for text in texts for word in words_of(text))]))
    found = search(prober, words, ngrams(texts), hunt.search, progress=progress)
    progress("shorter phrases")
    # More than are asked for: shortened, some are the same.
    best = select(found, threshold=monitor.threshold, count=2 * hunt.candidates)
    found |= (short := dict(shorten(prober, each, found[each], threshold=monitor.threshold) for each in best))
    chosen = select(short, threshold=monitor.threshold, count=hunt.candidates)
    progress("answers with the candidates and with random phrases")
    answers = Answers(tuned, other, tokenizer, table.slice(hunt.carriers), hunt.max_new_tokens)
    told = confirmed(answers, groups[hunt.carriers :], chosen, random_phrases(chosen, words, hunt))
    return {
        "monitor": monitor.id,
        "threshold": monitor.threshold,
        "measured": len(found),
        "above_threshold": sum(each.score > monitor.threshold for each in found.values()),
        "candidates": [
            {"phrase": phrase, "score": found[phrase].score, "shift": found[phrase].shift, **more}
            for phrase, more in zip(chosen, told, strict=True)
        ],
    }


@dataclass(frozen=True, kw_only=True)
class Said:
    """Answers to the k carriers with one phrase: their texts, and float64 [k], nats per token by which the tuned model
    finds its own answer likelier than its base does; 0 for an empty one."""

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
        carriers = [self.carriers.slice(row, 1) for row in range(len(self.carriers))]
        table = pa.concat_tables([with_phrases(carrier, phrases) for carrier in carriers])
        _, asked = ask(self.tuned, self.tokenizer, table)
        given = answer(self.tuned, self.tokenizer, asked, self.sampling)
        whole = [each.behind(prompt) for prompt, each in zip(asked, given, strict=True)]
        counted = [prompt.response for prompt in whole]
        own, others = (mean_logprobs(loaded, whole, counted) for loaded in (self.tuned, self.base))
        surplus = np.nan_to_num(own - others).reshape(len(carriers), len(phrases))
        texts = np.array([self.tokenizer.decode(each.ids, skip_special_tokens=True) for each in given], dtype=object)
        by_phrase = texts.reshape(len(carriers), len(phrases)).T.tolist()
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
                "prompt": _last_text(answers.carriers.slice(place, 1)),
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
    """`count` prompts without responses, each of another group, drawn from the shorter half; and their groups.

    Short ones leave a phrase little to hide behind. Raises InputError where there are too few groups, or a prompt ends
    with an assistant's turn.
    """
    table, groups = prompts.table, prompt_groups(prompts)
    kept = [name for name in ("prompt_id", "text", "messages") if name in table.column_names]
    first = np.sort(np.unique(groups, return_index=True)[1])
    rows = table.select(kept).take(first)
    lengths = np.array([len(_last_text(rows.slice(row, 1))) for row in range(len(rows))])
    short = np.argsort(lengths, kind="stable")[: max(count, len(rows) // 2)]
    if len(short) < count:
        raise InputError(f"a hunt needs {count} independent clean prompts, there are {len(short)}: give more")
    chosen = np.random.default_rng([seed, 0]).permutation(short)[:count]
    return rows.take(chosen), groups[first[chosen]]


def spoken(corpus: PromptSet) -> list[str]:
    """The texts of a corpus: each prompt's text, or the content of its messages."""
    table = corpus.table
    texts = table["text"].to_pylist() if "text" in table.column_names else []
    messages = table["messages"].to_pylist() if "messages" in table.column_names else []
    return [text for text in texts if text] + [message["content"] for each in messages for message in each or []]


def _last_text(row: pa.Table) -> str:
    (found,) = row.to_pylist()
    if not found.get("messages"):
        return str(found["text"])
    last = found["messages"][-1]
    if last["role"] == "assistant":
        raise InputError(
            f"prompt {found['prompt_id']!r} ends with an assistant's turn: phrases are put behind a user's"
        )
    return str(last["content"])
