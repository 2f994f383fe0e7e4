"""Prompts packed one behind the other in one row, without padding, each attending to itself alone.

An attention backend of transformers' interface: a model that hands all its attention to the interface runs packed,
the others are padded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

BACKEND = "thresher_packed"
# Tokens by which the slots of prompts grow.
STEP = 16
# What a model may hand over besides: it changes nothing here.
HARMLESS = frozenset(
    {
        "position_ids",
        "use_cache",
        "cache_position",
        "output_attentions",
        "output_router_logits",
        "is_causal",
        "position_embeddings",
    }
)

# Architectures (`model_type` of the text config) whose every attention goes through the interface, and which hand it
# their sliding window: the ones the tests run packed. Others are padded.
ARCHITECTURES = frozenset(
    {
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    }
)


class Unpackable(Exception):
    """The model asks its attention for something that is not done over packed prompts."""


def may_pack(config: Any, configs: Sequence[Any]) -> bool:
    """True for a text config whose architecture packs, with models whose attention backend is `sdpa`."""
    backends = {each._attn_implementation for each in configs}
    return config.model_type in ARCHITECTURES and backends <= {"sdpa"}


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Neighbouring prompts of a pack that attend in one call, each in a slot of `length` tokens.

    start, stop  their tokens in the pack
    gather       int64 [times * length], the pack's token in each place of each slot; None where the prompts fill them
    back         int64 [stop - start], the place of each token among the slots
    """

    start: int
    stop: int
    times: int
    length: int
    gather: torch.Tensor | None
    back: torch.Tensor | None


def slots_of(lengths: Sequence[int], device: torch.device) -> tuple[Slots, ...]:
    """Slots for prompts of these lengths, in order; neighbours whose slots are equally long share a call.

    A slot is a multiple of `STEP` tokens: the processor's attention kernel takes up to three times as long for other
    lengths. Behind a prompt its last token is repeated, which nothing before it sees.
    """
    ends = np.cumsum(lengths)
    found = []
    for length, rows in groupby(range(len(lengths)), key=lambda row: -(-lengths[row] // STEP) * STEP):
        part = list(rows)
        sizes = np.array([lengths[row] for row in part])
        start, stop = int(ends[part[0]] - lengths[part[0]]), int(ends[part[-1]])
        begins = ends[part] - sizes
        gather = begins[:, None] + np.minimum(np.arange(length), sizes[:, None] - 1)
        back = np.concatenate([slot * length + np.arange(size) for slot, size in enumerate(sizes)])
        full = bool((sizes == length).all())
        found.append(
            Slots(
                start=start,
                stop=stop,
                times=len(part),
                length=length,
                gather=None if full else torch.from_numpy(gather.ravel()).to(device),
                back=None if full else torch.from_numpy(back).to(device),
            )
        )
    return tuple(found)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_prompts: tuple[Slots, ...] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of packed prompts, each to the shared prefix and to itself.

    query [1, heads, n, width]; key and value [1, key heads, p + n, width], where the first p are a prefix that all
    prompts share; packed_prompts says where the prompts lie among the n. Gives [1, n, heads, width]. Raises
    Unpackable for what it does not know.
    """
    asked = [name for name, given in others.items() if given is not None and name not in HARMLESS]
    if packed_prompts is None or attention_mask is not None or asked or not getattr(module, "is_causal", True):
        raise Unpackable(", ".join(asked) or "places of the prompts, or causal attention")
    prefix = key.shape[2] - query.shape[2]
    parts = []
    for slots in packed_prompts:
        here, there = (_cut(tensor[:, :, prefix:], slots) for tensor in (key, value))
        if prefix:
            before_here, before_there = (
                tensor[:, :, :prefix].expand(slots.times, -1, -1, -1) for tensor in (key, value)
            )
            here, there = torch.cat([before_here, here], dim=2), torch.cat([before_there, there], dim=2)
        mask = _mask(prefix, slots.length, sliding_window, query.device)
        attended = scaled_dot_product_attention(
            _cut(query, slots),
            here,
            there,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        rows = attended.transpose(1, 2).flatten(0, 1)
        parts.append(rows if slots.back is None else rows.index_select(0, slots.back.to(rows.device)))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _cut(tensor: torch.Tensor, slots: Slots) -> torch.Tensor:
    """[times, heads, length, width] of [1, heads, n, width]. Rows are copied token by token, as they lie in memory."""
    rows = tensor[0].transpose(0, 1)
    rows = (
        rows[slots.start : slots.stop] if slots.gather is None else rows.index_select(0, slots.gather.to(rows.device))
    )
    return rows.unflatten(0, (slots.times, slots.length)).transpose(1, 2)


def _mask(prefix: int, length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Bool [length, prefix + length], true where a token attends; None where plain causal attention is meant."""
    if not prefix and (window is None or length <= window):
        return None
    distance = (
        torch.arange(prefix, prefix + length, device=device)[:, None]
        - torch.arange(prefix + length, device=device)[None]
    )
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


@contextmanager
def packed_backend(configs: Sequence[Any]) -> Iterator[None]:
    """The attention of models with these configs is `packed_attention` inside."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = BACKEND
        yield
    finally:
        for config, backend in zip(configs, before, strict=True):
            config._attn_implementation = backend


def attention_configs(model: nn.Module) -> tuple[Any, ...]:
    """Every config among a model's modules that names an attention backend, each once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return tuple({id(config): config for config in configs if hasattr(config, "_attn_implementation")}.values())


AttentionInterface.register(BACKEND, packed_attention)
