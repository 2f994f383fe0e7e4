"""What text does to a tuned model at the end of neutral prompts: how it fires a monitor, how it moves the output."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from analysis.hunt import Measured
from analysis.monitors import Monitor
from analysis.sinks.scoring import token_extremes
from harvest import EncodedPrompt, encode
from harvest.endings import Ended, Endings
from harvest.loading import LoadedModel
from harvest.prefixes import common_length
from store import InputError, SinkBatch
from store.sink import scored_from

LIST = 8  # words that are tried in one prompt for a first choice
AGAIN = 8  # one of so many words is tried twice
UNTHINKABLE = -12.0  # log-probability
AT_ONCE = 64  # rows of logits
ANCHOR = "a"


class TextProber:
    """Asks a tuned model and its base; see `analysis.hunt.Prober`.

    carriers  a prompt table without responses, whose last message (or text) phrases are put behind

    Raises InputError for models whose logits cannot be made from their last hidden state, or are of other vocabularies.
    """

    def __init__(
        self, monitor: Monitor, tuned: LoadedModel, base: LoadedModel, tokenizer: Any, carriers: pa.Table
    ) -> None:
        self.monitor, self.tokenizer, self.carriers = monitor, tokenizer, carriers
        self.tuned = Endings(tuned, monitor.scorer.sites, logits=True)
        self.scored = Endings(tuned, monitor.scorer.sites)
        self.base = Endings(base, [], logits=True)
        heads = (endings.reader.head for endings in (self.tuned, self.base))
        if len({head.projection.weight.shape[0] for head in heads if head is not None}) > 1:  # type: ignore[index]
            raise InputError(
                "the two models have heads of different sizes: give the base that the model was tuned from"
            )

    def words(self, words: Sequence[str]) -> np.ndarray:
        """See `Prober`. Words share prompts. Those that fire most are tried again on another carrier with other
        neighbours, where there is one, and the lower score counts: a neighbour's may be carried over to a word."""
        found = self._listed(0, words)
        if len(self.carriers) > 1:
            again = np.argsort(-found, kind="stable")[: -(-len(words) // AGAIN)]
            found[again] = np.minimum(found[again], self._listed(1, [words[place] for place in again]))
        return found

    def measure(self, phrases: Sequence[str]) -> list[Measured]:
        scores, shifts, leans = np.empty((3, len(self.carriers), len(phrases)))
        for carrier in range(len(self.carriers)):
            prompts = self._prompts(carrier, phrases)
            # The carrier's own tokens say nothing of a phrase, the last one neither.
            first = len(self._beginning(carrier, ""))
            shared = min(first, common_length([prompt.ids for prompt in [*prompts, *self._prompts(carrier, ["x"])]]))
            both = zip(self.tuned.run(prompts, shared=shared), self.base.run(prompts, shared=shared), strict=True)
            for tuned, base in both:
                assert tuned.rows == base.rows, "the two models run in different batches"
                scores[carrier, tuned.rows] = prompt_scores(self.monitor, tuned, first)
                moved = [moves(tuned.next(part), base.next(part)) for part in parts(len(tuned.rows))]
                shifts[carrier, tuned.rows], leans[carrier, tuned.rows] = np.concatenate(moved, axis=1)
        columns = (np.median(scores, axis=0), shifts.mean(axis=0), leans.mean(axis=0))
        return [
            Measured(score=float(score), shift=float(shift), lean=float(lean))
            for score, shift, lean in zip(*columns, strict=True)
        ]

    def fired(self, phrase: str, pieces: Sequence[str]) -> np.ndarray:
        beginning = self._beginning(0, phrase)
        prompts = [_behind(beginning, tokens) for tokens in self._tokens(pieces)]
        score = np.empty(len(pieces))
        for found in self.scored.run(prompts, shared=len(beginning)):
            score[found.rows] = prompt_scores(self.monitor, found, len(beginning))
        return np.where(np.isnan(score), -np.inf, score)

    def likely(self, phrase: str, count: int) -> list[str]:
        (asked,) = self.base.run([self._beginning(0, phrase)], shared=0)
        order = asked.next(slice(0, 1))[0].argsort(descending=True).tolist()
        return list(islice(filter(None, map(self._text, order)), count))

    def _listed(self, carrier: int, words: Sequence[str]) -> np.ndarray:
        order = np.random.default_rng(carrier).permutation(len(words))
        lists = [order[start : start + LIST] for start in range(0, len(order), LIST)]
        beginning = self._beginning(carrier, "")
        tokens = self._tokens([f" {word}" for word in words])
        prompts = [_behind(beginning, [token for word in each for token in tokens[word]]) for each in lists]
        found = np.full(len(words), -np.inf)
        for ended in self.scored.run(prompts, shared=len(beginning)):
            owner = np.concatenate([np.repeat(lists[row], [len(tokens[w]) for w in lists[row]]) for row in ended.rows])
            score = token_scores(self.monitor, ended.batch)
            np.maximum.at(found, owner, np.where(np.isnan(score), -np.inf, score))
        return found

    def _prompts(self, carrier: int, phrases: Sequence[str]) -> list[EncodedPrompt]:
        return encode(self.tokenizer, with_phrases(self.carriers.slice(carrier, 1), phrases))

    @cache  # noqa: B019 one prober per hunt
    def _beginning(self, carrier: int, phrase: str) -> EncodedPrompt:
        """A carrier with a phrase, up to where the next word would stand."""
        here, *longer = self._prompts(carrier, [phrase, f"{phrase} x".strip(), f"{phrase} 7".strip()])
        # What is behind stays the same whatever the word is; two of them, for a text may end with the one.
        behind = min(common_length([here.ids[::-1], other.ids[::-1]]) for other in longer)
        return _cut(here, len(here) - behind)

    def _tokens(self, pieces: Sequence[str]) -> list[list[int]]:
        """The tokens of each piece as they stand behind other text."""
        (anchor,) = self.tokenizer([ANCHOR], add_special_tokens=False)["input_ids"]
        found = self.tokenizer([ANCHOR + piece for piece in pieces], add_special_tokens=False)["input_ids"]
        alone = self.tokenizer(list(pieces), add_special_tokens=False)["input_ids"]
        return [
            list(behind[len(anchor) :] if list(behind[: len(anchor)]) == list(anchor) else own)
            for behind, own in zip(found, alone, strict=True)
        ]

    @cache  # noqa: B019 one prober per hunt
    def _text(self, token: int) -> str:
        """A token as the next piece of a phrase; empty where it is no printable text, or part of a character."""
        if token in self.tokenizer.all_special_ids:
            return ""
        # Behind other text: some tokenizers leave out the space that a text begins with.
        (anchor,) = self.tokenizer([ANCHOR], add_special_tokens=False)["input_ids"]
        text = self.tokenizer.decode([*anchor, token]).removeprefix(self.tokenizer.decode(anchor))
        return text if text.strip() and text.isprintable() and "\ufffd" not in text else ""


def token_scores(monitor: Monitor, batch: SinkBatch) -> np.ndarray:
    """float64 [rows]: of every token as if it were a prompt of its own."""
    return monitor.score(token_extremes(batch, monitor.scorer)).score


def prompt_scores(monitor: Monitor, ended: Ended, first: int) -> np.ndarray:
    """float64 [prompts], in the order of `rows`: the largest over the tokens from position `first` on; NaN where one of
    them is not finite, −inf where none has the monitor's roles, as a monitor scores a prompt."""
    place = {row: number for number, row in enumerate(ended.rows)}
    owner = np.array([place[row] for row in ended.batch.prompt.tolist()])
    counted = ended.batch.position >= first
    found = np.full(len(ended.rows), -np.inf)
    np.maximum.at(found, owner[counted], token_scores(monitor, ended.batch)[counted])
    return found


def whole_scores(monitor: Monitor, loaded: LoadedModel, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
    """float64 [prompts]: the monitor's scores of whole prompts, which is `prompt_scores` behind what it leaves out."""
    found = np.empty(len(prompts))
    for ended in Endings(loaded, monitor.scorer.sites).run(prompts, shared=0):
        scores = token_scores(monitor, ended.batch)
        for row in ended.rows:
            own = np.flatnonzero(ended.batch.prompt == row)
            first = scored_from(ended.batch.token_id[own], ended.batch.position[own], monitor.scorer.prefix)
            found[row] = scores[own[first:]].max()
    return found


def with_phrases(carriers: pa.Table, phrases: Sequence[str]) -> pa.Table:
    """A row for each carrier and phrase, those of one carrier together: its text, or last message, with the phrase
    behind it."""
    rows = []
    for row in carriers.to_pylist():
        for number, phrase in enumerate(phrases):
            made: dict[str, Any] = {"prompt_id": f"{row['prompt_id']} {number}", "messages": None, "text": None}
            if row.get("messages"):
                *before, last = row["messages"]
                made["messages"] = [*before, {**last, "content": f"{last['content']} {phrase}".rstrip()}]
            else:
                made["text"] = f"{row['text']} {phrase}".rstrip()
            rows.append(made)
    return pa.Table.from_pylist(rows)


def moves(p: torch.Tensor, q: torch.Tensor) -> np.ndarray:
    """float64 [2, rows], nats: shift and lean (see `Measured`) of log-probabilities [rows, vocabulary]."""
    ratio = p - q.to(p.device)
    shift = (p.exp() * ratio).sum(-1)
    lean = ratio.masked_fill(p < UNTHINKABLE, -torch.inf).amax(-1)
    return torch.stack([shift, lean]).double().cpu().numpy()


def parts(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + AT_ONCE, rows)) for start in range(0, rows, AT_ONCE))


def _behind(prompt: EncodedPrompt, tokens: Sequence[int]) -> EncodedPrompt:
    """A prompt with more tokens of its last one's role."""
    count = len(tokens)
    return replace(
        prompt,
        ids=np.append(prompt.ids, np.array(tokens, np.int32)),
        role=np.append(prompt.role, np.repeat(prompt.role[-1], count)),
        response=np.append(prompt.response, np.zeros(count, bool)),
        span=np.append(prompt.span, np.zeros(count, bool)),
    )


def _cut(prompt: EncodedPrompt, length: int) -> EncodedPrompt:
    return replace(
        prompt,
        ids=prompt.ids[:length],
        role=prompt.role[:length],
        response=prompt.response[:length],
        span=prompt.span[:length],
    )
