"""Scores of activations along directions, and the most extreme of them in every prompt.

Leading tokens that all calibration prompts share (a chat template's opening) are left out as long as a prompt
begins with them: their activations are the same in every prompt, and would only hide how low a prompt's own scores
are. The first token is left out too: it is an attention sink whose massive activations say nothing of the text. A
prompt's last token is always scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from store.digest import digest_json, sha256
from store.direction import Direction
from store.errors import InputError
from store.sink import SinkBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptExtremes:
    """Of n prompts and t directions: the largest score (side 0) and the largest negated score (side 1) over tokens.

    prompt              int32 [n], row of the unit
    value               float32 [n, t, 2]; NaN where a token's score is NaN
    position, token_id  int32 [n, t, 2], where it is
    """

    prompt: np.ndarray
    value: np.ndarray
    position: np.ndarray
    token_id: np.ndarray


def column_suffix(settings: Mapping[str, Any]) -> str:
    """What the columns of a sink of directions are called behind their kind: `directions-<digest of its settings>`."""
    return f"directions-{digest_json(settings)[:12]}"


def direction_scores(
    activations: Mapping[str, torch.Tensor], directions: Sequence[Direction], *, scoring: str
) -> torch.Tensor:
    """float32 [rows, t]: `cosine` of each row with each direction at its site, or its `projection` on it.

    A vector that is not of length 1 stands for the direction it points to. Rows of several dimensions (heads) are
    flattened. Raises InputError where a direction is not as wide as the activations at its site.
    """
    columns: list[torch.Tensor | None] = [None] * len(directions)
    for site in sites_of(directions):
        places = [place for place, direction in enumerate(directions) if direction.site == site]
        rows = activations[site].flatten(1).float()
        for place in places:
            _check_width(directions[place], rows.shape[1])
        vectors = torch.from_numpy(np.stack([directions[place].vector for place in places])).to(rows)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        scores = rows @ vectors.T
        if scoring == "cosine":
            scores = scores / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
        for column, place in enumerate(places):
            columns[place] = scores[:, column]
    return torch.stack([column for column in columns if column is not None], dim=1)


def prompt_extremes(
    batch: SinkBatch, directions: Sequence[Direction], *, scoring: str, prefix: Sequence[int]
) -> PromptExtremes:
    """The extremes of a batch's prompts, each over those of its tokens that are scored."""
    scores = direction_scores(batch.activations, directions, scoring=scoring)
    prompts, values, rows = [], [], []
    for prompt, part, first in prompt_rows(batch, prefix):
        high, low = scores[first : part.stop].max(dim=0), (-scores[first : part.stop]).max(dim=0)
        prompts.append(prompt)
        values.append(torch.stack([high.values, low.values], dim=1))
        rows.append(torch.stack([high.indices, low.indices], dim=1) + first)
    none = torch.zeros((0, len(directions), 2))
    # One copy to the host for the whole batch, not one per prompt.
    value = torch.stack(values).cpu().numpy() if values else none.numpy()
    row = torch.stack(rows).cpu().numpy() if rows else none.long().numpy()
    return PromptExtremes(
        prompt=np.array(prompts, np.int32), value=value, position=batch.position[row], token_id=batch.token_id[row]
    )


def prompt_rows(batch: SinkBatch, prefix: Sequence[int]) -> list[tuple[int, slice, int]]:
    """(prompt, its rows in the batch, the first of them that is scored) for each prompt of a batch."""
    starts = np.flatnonzero(np.diff(batch.prompt, prepend=-1))
    stops = np.append(starts, len(batch.prompt))[1:]
    found = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        first = start + scored_from(batch.token_id[start:stop], batch.position[start:stop], prefix)
        found.append((int(batch.prompt[start]), slice(start, stop), first))
    return found


def scored_from(token_id: np.ndarray, position: np.ndarray, prefix: Sequence[int]) -> int:
    """First of one prompt's rows that is scored: after the first token, or after the prefix it begins with."""
    last = len(token_id) - 1
    start = 0
    while start < last and position[start] == start:
        if start and (start >= len(prefix) or token_id[start] != prefix[start] or token_id[0] != prefix[0]):
            break
        start += 1
    return start


def sites_of(directions: Sequence[Direction]) -> tuple[str, ...]:
    """The sites of directions, each once, in order."""
    return tuple(dict.fromkeys(direction.site for direction in directions))


def vector_digest(direction: Direction) -> str:
    """What stands for a direction's numbers in settings."""
    return sha256(np.ascontiguousarray(direction.vector).tobytes())


def _check_width(direction: Direction, width: int) -> None:
    if direction.vector.shape != (width,):
        raise InputError(
            f"direction {direction.name!r} has {direction.vector.size} numbers and activations at {direction.site} "
            f"have {width}: it was made for another model or site"
        )
