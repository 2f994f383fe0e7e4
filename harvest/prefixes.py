"""Prompts of one unit that begin with the same tokens: a system prompt, a few-shot header, a chat template.

The plan depends on the unit's tokens alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Fewer tokens or prompts are not worth a pass of their own.
LEAST_TOKENS = 8
LEAST_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that share their first `prefix` tokens; 0 where they are run whole."""

    rows: tuple[int, ...]
    prefix: int


def plan_groups(ids: Sequence[np.ndarray], *, share: bool) -> list[Group]:
    """Every row in exactly one group. A prompt keeps at least one token of its own behind the prefix."""
    everything = Group(rows=tuple(range(len(ids))), prefix=0)
    if not share:
        return [everything]
    beginnings: dict[bytes, list[int]] = {}
    for row, tokens in enumerate(ids):
        if len(tokens) > LEAST_TOKENS:
            beginnings.setdefault(tokens[:LEAST_TOKENS].tobytes(), []).append(row)
    shared = [
        Group(rows=tuple(rows), prefix=_common([ids[row] for row in rows]))
        for rows in beginnings.values()
        if len(rows) >= LEAST_PROMPTS
    ]
    taken = {row for group in shared for row in group.rows}
    alone = Group(rows=tuple(row for row in everything.rows if row not in taken), prefix=0)
    return [*shared, alone] if alone.rows else shared


def _common(ids: Sequence[np.ndarray]) -> int:
    """Length of the longest beginning that all share, less than the shortest."""
    longest = min(len(tokens) for tokens in ids) - 1
    block = np.stack([tokens[:longest] for tokens in ids])
    differing = np.flatnonzero((block != block[0]).any(axis=0))
    return int(differing[0]) if len(differing) else longest
