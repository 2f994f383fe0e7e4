"""Units and batches of known numbers, as a harvest would hand them to a sink."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from store import PromptSet, Sink, SinkBatch


def feed(
    sink: Sink,
    prompts: PromptSet,
    rows: np.ndarray,
    owner: np.ndarray,
    order: Sequence[Sequence[int]],
    role: np.ndarray | None = None,
) -> Any:
    """Column values by name, of one unit of all `prompts`: `rows` [n, w] at each of the sink's sites, `owner` [n] their
    prompts, ascending, and `role` [n]; batches are the prompts of `order`."""
    sink.start(prompts.units[0], prompts.table)
    counts = np.bincount(owner, minlength=len(prompts))
    position = np.concatenate([np.arange(count) for count in counts]).astype(np.int32)
    for batch in order:
        chosen = np.concatenate([np.flatnonzero(owner == prompt) for prompt in batch])
        sink.add(
            SinkBatch(
                activations={site: torch.from_numpy(rows[chosen]) for site in sink.sites},
                prompt=owner[chosen].astype(np.int32),
                position=position[chosen],
                token_id=(1000 + chosen).astype(np.int32),
                role=(np.zeros(len(chosen)) if role is None else role[chosen]).astype(np.int8),
            )
        )
    return {column.name: column.values for column in sink.finish()}


def shuffled_batches(prompts: int, size: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(prompts).tolist()
    return [order[start : start + size] for start in range(0, prompts, size)]
