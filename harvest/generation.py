"""On-policy responses: batched decoding whose text does not depend on the batch.

Every prompt draws from a random stream of its own, seeded by the seed and its prompt id, so that neither its
neighbours nor the order of batches decide what it is answered. Prompts are padded on the left, with explicit
positions and masks, so that all of a batch's next tokens stand in one column.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import DynamicCache

from harvest.batching import plan_batches
from harvest.encoding import EncodedPrompt, encode
from harvest.interventions import Intervention, intervene
from harvest.loading import LoadedModel
from store.digest import canonical_json
from store.errors import InputError


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


def generate(
    loaded: LoadedModel,
    tokenizer: Any,
    prompts: pa.Table,
    sampling: Sampling,
    *,
    interventions: Sequence[Intervention] = (),
    truncate: bool = False,
    progress: Callable[[int], None] = lambda prompts: None,
) -> pa.Table:
    """`prompts` with columns `response`, `response_tokens` (int32), `finish` (`stop` or `length`) and `generation`.

    prompts   rows as PromptSet has them; a `response` column that is there is replaced
    progress  called with the number of prompts answered since the last call
    `generation` is JSON: model, digest, dtype, sampling, interventions. Raises InputError for messages that end with
    an assistant's turn, and as `encode` does.
    """
    asked = prompts.drop_columns(["response"]) if "response" in prompts.column_names else prompts
    if "messages" in asked.column_names:
        for row in asked.select(["prompt_id", "messages"]).to_pylist():
            if row["messages"] and row["messages"][-1]["role"] == "assistant":
                raise InputError(
                    f"prompt {row['prompt_id']!r} ends with an assistant's turn: there is nothing to answer"
                )
    encoded = encode(tokenizer, asked, context=loaded.context, truncate=truncate)
    answers: list[tuple[list[int], str]] = [([], "length")] * len(encoded)
    with intervene(loaded, interventions):
        for rows in plan_batches([len(prompt) + sampling.max_new_tokens for prompt in encoded], sampling.token_budget):
            batch = [encoded[row] for row in rows]
            for row, answer in zip(rows, _decode(loaded, tokenizer, batch, sampling), strict=True):
                answers[row] = answer
            progress(len(rows))
    provenance = canonical_json(
        {
            "model": loaded.ref.name,
            "digest": loaded.ref.digest,
            "dtype": loaded.ref.dtype,
            "sampling": asdict(sampling),
            "interventions": [intervention.record() for intervention in interventions],
        }
    ).decode()
    kept = asked.drop_columns(
        [name for name in ("response_tokens", "finish", "generation") if name in asked.column_names]
    )
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in answers]
    return (
        kept.append_column("response", pa.array(texts, pa.string()))
        .append_column("response_tokens", pa.array([len(ids) for ids, _ in answers], pa.int32()))
        .append_column("finish", pa.array([finish for _, finish in answers], pa.string()))
        .append_column("generation", pa.array([provenance] * len(answers), pa.string()))
    )


@torch.inference_mode()
def _decode(
    loaded: LoadedModel, tokenizer: Any, batch: Sequence[EncodedPrompt], sampling: Sampling
) -> list[tuple[list[int], str]]:
    """New tokens of every prompt, without the end token, and why it ended."""
    device, model = loaded.device, loaded.model
    longest = max(len(prompt) for prompt in batch)
    ids = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(batch):
        ids[row, longest - len(prompt) :] = prompt.ids
        mask[row, longest - len(prompt) :] = 1
    step_ids, attention = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    accepted = inspect.signature(model.forward).parameters
    cache = DynamicCache(config=loaded.decoder.config)
    streams = [_stream(sampling.seed, prompt.prompt_id) for prompt in batch]
    room = [_room(loaded, prompt, sampling) for prompt in batch]
    ends = _end_tokens(model, tokenizer)
    found: list[list[int]] = [[] for _ in batch]
    finish: list[str | None] = [None] * len(batch)
    while True:
        given = {
            "input_ids": step_ids,
            "attention_mask": attention,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        logits = model(**{name: value for name, value in given.items() if name in accepted}).logits[:, -1].float()
        chosen = [0] * len(batch)
        for row, token in enumerate(_choose(logits, sampling, streams)):
            if finish[row] is not None:
                continue
            if token in ends:
                finish[row] = "stop"
                continue
            found[row].append(token)
            chosen[row] = token
            if len(found[row]) == room[row]:
                finish[row] = "length"
        if all(finish):
            return [(tokens, str(reason)) for tokens, reason in zip(found, finish, strict=True)]
        step_ids = torch.tensor(chosen, device=device)[:, None]
        positions = positions[:, -1:] + 1
        attention = torch.cat([attention, attention.new_ones((len(batch), 1))], dim=1)


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
