"""On-policy responses: batched decoding whose text does not depend on the batch.

Every prompt draws from a random stream of its own, seeded by the seed and its prompt id, so that neither its
neighbours nor the order of batches decide what it is answered. Prompts are padded on the left, with explicit
positions and masks, so that all of a batch's next tokens stand in one column.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import DynamicCache

from harvest.batching import plan_batches
from harvest.condition import Condition, Gate, padded_pools
from harvest.encoding import EncodedPrompt, encode
from harvest.interventions import Intervention, intervene
from harvest.loading import LoadedModel
from store.digest import canonical_json
from store.errors import InputError
from store.sink import ROLES


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Temperature 0 takes the most probable one; `top_p` keeps the smallest set of tokens
    whose probabilities reach it."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    token_budget: int = 8192

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError("generation takes max_new_tokens of 1 or more, temperature of 0 or more, top_p in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said: its new tokens without the end token, `stop` or `length`, whether a condition of
    interventions was met on the way (False without one), and the token that ended it."""

    ids: tuple[int, ...]
    finish: str
    fired: bool
    end: int | None = None

    def behind(self, prompt: EncodedPrompt, *, end: bool = False) -> EncodedPrompt:
        """The tokens of a prompt and of this answer to it, which is its `response`; with `end` also the end token."""
        ids = (*self.ids, self.end) if end and self.end is not None else self.ids
        new = len(ids)
        return replace(
            prompt,
            ids=np.concatenate([prompt.ids, np.array(ids, np.int32)]),
            role=np.concatenate([prompt.role, np.full(new, ROLES.index("assistant"), np.int8)]),
            response=np.concatenate([np.zeros(len(prompt), bool), np.ones(new, bool)]),
            span=np.concatenate([prompt.span, np.zeros(new, bool)]),
        )


def generate(
    loaded: LoadedModel,
    tokenizer: Any,
    prompts: pa.Table,
    sampling: Sampling,
    *,
    interventions: Sequence[Intervention] = (),
    once: Condition | None = None,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda prompts: None,
) -> pa.Table:
    """`prompts` with columns `response`, `response_tokens` (int32), `finish` (`stop` or `length`) and `generation`.

    prompts   rows as PromptSet has them; a `response` column that is there is replaced
    once      the interventions act on what follows once a prompt has fired; column `fired` (bool) tells which did. The
              messages of a conversation are read whole, so one that fired at an earlier turn has fired
    progress  called with the number of prompts answered since the last call
    `generation` is JSON: model, digest, dtype, sampling, interventions, and `once` where it is given. Raises InputError
    for messages that end with an assistant's turn, and as `encode` does.
    """
    asked, encoded = ask(loaded, tokenizer, prompts, truncate=truncate)
    answers = answer(loaded, tokenizer, encoded, sampling, interventions=interventions, once=once, progress=progress)
    provenance = {
        "model": loaded.ref.name,
        "digest": loaded.ref.digest,
        "dtype": loaded.ref.dtype,
        "sampling": asdict(sampling),
        "interventions": [intervention.record() for intervention in interventions],
    }
    columns = {
        "response": pa.array([tokenizer.decode(each.ids, skip_special_tokens=True) for each in answers], pa.string()),
        "response_tokens": pa.array([len(each.ids) for each in answers], pa.int32()),
        "finish": pa.array([each.finish for each in answers], pa.string()),
    }
    if once is not None:
        provenance["once"] = once.record()
        columns["fired"] = pa.array([each.fired for each in answers], pa.bool_())
    columns["generation"] = pa.array([canonical_json(provenance).decode()] * len(answers), pa.string())
    kept = asked.drop_columns([name for name in columns if name in asked.column_names])
    for name, values in columns.items():
        kept = kept.append_column(name, values)
    return kept


def ask(
    loaded: LoadedModel, tokenizer: Any, prompts: pa.Table, *, truncate: bool = False
) -> tuple[pa.Table, list[EncodedPrompt]]:
    """The prompts without responses, and their tokens. Raises InputError as `generate` does."""
    asked = prompts.drop_columns(["response"]) if "response" in prompts.column_names else prompts
    if "messages" in asked.column_names:
        for row in asked.select(["prompt_id", "messages"]).to_pylist():
            if row["messages"] and row["messages"][-1]["role"] == "assistant":
                raise InputError(
                    f"prompt {row['prompt_id']!r} ends with an assistant's turn: there is nothing to answer"
                )
    return asked, encode(tokenizer, asked, context=loaded.context, truncate=truncate)


def answer(
    loaded: LoadedModel,
    tokenizer: Any,
    encoded: Sequence[EncodedPrompt],
    sampling: Sampling,
    *,
    interventions: Sequence[Intervention] = (),
    once: Condition | None = None,
    progress: Callable[[int], None] = lambda prompts: None,
) -> list[Answer]:
    """An answer to each prompt, in their order; see `generate`."""
    answers: list[Answer | None] = [None] * len(encoded)
    with intervene(loaded, interventions, once=once) as gate:
        for rows in plan_batches([len(prompt) + sampling.max_new_tokens for prompt in encoded], sampling.token_budget):
            batch = [encoded[row] for row in rows]
            for row, found in zip(rows, _decode(loaded, tokenizer, batch, sampling, gate), strict=True):
                answers[row] = found
            progress(len(rows))
    return [found for found in answers if found is not None]


@torch.inference_mode()
def _decode(
    loaded: LoadedModel, tokenizer: Any, batch: Sequence[EncodedPrompt], sampling: Sampling, gate: Gate
) -> list[Answer]:
    """The answer to every prompt of a batch; the gate says where interventions act."""
    device, model = loaded.device, loaded.model
    longest = max(len(prompt) for prompt in batch)
    ids = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(batch):
        ids[row, longest - len(prompt) :] = prompt.ids
        mask[row, longest - len(prompt) :] = 1
    step_ids, attention = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    pools = padded_pools(gate.condition, batch, width=longest, left=True).to(device)
    said = -1 if gate.condition is None else gate.condition.pool_of("assistant")
    streams = [_stream(sampling.seed, prompt.prompt_id) for prompt in batch]
    room = [_room(loaded, prompt, sampling) for prompt in batch]
    ends = _end_tokens(model, tokenizer)
    found: list[list[int]] = [[] for _ in batch]
    finish: list[str | None] = [None] * len(batch)
    end: list[int | None] = [None] * len(batch)
    # Each call begins with an empty cache: where prompts fire, the gate asks for their pass again.
    logits, cache = gate.prompts(
        pools, lambda: _forward(model, step_ids, attention, positions, DynamicCache(config=loaded.decoder.config))
    )
    while True:
        chosen = [0] * len(batch)
        for row, token in enumerate(_choose(logits, sampling, streams)):
            if finish[row] is not None:
                continue
            if token in ends:
                finish[row], end[row] = "stop", token
                continue
            found[row].append(token)
            chosen[row] = token
            if len(found[row]) == room[row]:
                finish[row] = "length"
        if all(finish):
            return [
                Answer(ids=tuple(tokens), finish=str(reason), fired=fired, end=last)
                for tokens, reason, fired, last in zip(
                    found, finish, gate.fired or [False] * len(batch), end, strict=True
                )
            ]
        step_ids = torch.tensor(chosen, device=device)[:, None]
        positions = positions[:, -1:] + 1
        attention = torch.cat([attention, attention.new_ones((len(batch), 1))], dim=1)
        # What stands in the row of an answer that has ended is no token of it.
        pools = torch.tensor([said if reason is None else -1 for reason in finish], device=device)[:, None]
        logits, cache = gate.step(pools, partial(_forward, model, step_ids, attention, positions, cache))


def _forward(
    model: Any, ids: torch.Tensor, attention: torch.Tensor, positions: torch.Tensor, cache: Any
) -> tuple[torch.Tensor, Any]:
    """float32 [rows, vocabulary], what follows the last column of `ids`; and the cache, which now has them."""
    given = {
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": positions,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    accepted = inspect.signature(model.forward).parameters
    logits = model(**{name: value for name, value in given.items() if name in accepted}).logits[:, -1]
    return logits.float(), cache


def _choose(logits: torch.Tensor, sampling: Sampling, streams: Sequence[np.random.Generator]) -> list[int]:
    """The next token of every row: [rows, vocabulary] -> [rows]. One random number is drawn per row and step."""
    if sampling.temperature == 0:
        return [int(token) for token in logits.argmax(-1)]
    ordered, tokens = torch.softmax(logits.double() / sampling.temperature, -1).sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < sampling.top_p, ordered, 0.0).cumsum(-1)
    draws = torch.tensor([stream.random() for stream in streams], dtype=torch.float64, device=logits.device)
    place = torch.searchsorted(kept, draws[:, None] * kept[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return [int(token) for token in tokens.gather(-1, place)[:, 0]]


def _stream(seed: int, prompt_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\n{prompt_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _room(loaded: LoadedModel, prompt: EncodedPrompt, sampling: Sampling) -> int:
    left = sampling.max_new_tokens if loaded.context is None else loaded.context - len(prompt)
    if left < 1:
        raise InputError(f"prompt {prompt.prompt_id!r} fills the whole context: there is no room for a response")
    return min(left, sampling.max_new_tokens)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a response: the generation config's, and the tokenizer's end token."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = own if isinstance(own, list) else [own]
    return {int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None}
