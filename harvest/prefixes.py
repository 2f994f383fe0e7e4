"""Prompts of one unit that run together, and those that begin with the same tokens: a system prompt, a few-shot
header, a chat template.

The plan depends on the unit's tokens alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Fewer tokens or prompts are not worth a pass of their own.
LEAST_TOKENS = 8
LEAST_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that share their first `prefix` tokens; 0 where they are run whole."""

    rows: tuple[int, ...]
    prefix: int


def plan_groups(ids: Sequence[np.ndarray], *, share: bool, short: int | None = None) -> list[Group]:
    """Every row in exactly one group. A prompt keeps at least one token of its own behind the prefix.

    Prompts of more than `short` tokens are a group of their own: see `short_context`.
    """
    long = tuple(row for row, tokens in enumerate(ids) if short is not None and len(tokens) > short)
    others = [row for row in range(len(ids)) if row not in set(long)]
    beginnings: dict[bytes, list[int]] = {}
    for row in others:
        if share and len(ids[row]) > LEAST_TOKENS:
            beginnings.setdefault(ids[row][:LEAST_TOKENS].tobytes(), []).append(row)
    shared = [
        Group(rows=tuple(rows), prefix=common_length([ids[row] for row in rows]))
        for rows in beginnings.values()
        if len(rows) >= LEAST_PROMPTS
    ]
    taken = {row for group in shared for row in group.rows}
    alone = tuple(row for row in others if row not in taken)
    return [*shared, *(Group(rows=rows, prefix=0) for rows in (alone, long) if rows)]


def short_context(config: Any) -> int | None:
    """Longest prompt of a text config's short regime; None where length changes nothing.

    With LongRoPE (arXiv 2402.13753, Phi-3) the longest prompt of a batch decides the frequencies of all: prompts on
    the two sides of the original context are never run together, nor is one side's prefix used for the other.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    each = rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]
    limits = [part["original_max_position_embeddings"] for part in each if part.get("rope_type") == "longrope"]
    return min(limits, default=None)


def common_length(ids: Sequence[np.ndarray]) -> int:
    """Length of the longest beginning that all share, less than the shortest."""
    longest = min(len(tokens) for tokens in ids) - 1
    block = np.stack([tokens[:longest] for tokens in ids])
    differing = np.flatnonzero((block != block[0]).any(axis=0))
    return int(differing[0]) if len(differing) else longest
