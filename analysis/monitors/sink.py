"""Sinks that score activations along directions while they are harvested; no activation is stored.

Leading tokens that all calibration prompts share (a chat template's opening) are left out as long as a prompt
begins with them: their activations are the same in every prompt, and would only hide how low a prompt's own scores
are. The first token is left out too: it is an attention sink whose massive activations say nothing of the text. A
prompt's last token is always scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from analysis.monitors.monitor import Monitor
from store.digest import digest_json, sha256
from store.direction import Direction
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit


def direction_scores(
    activations: Mapping[str, torch.Tensor], directions: Sequence[Direction], *, scoring: str
) -> torch.Tensor:
    """float32 [rows, t]: cosine or projection of each row with each direction at its site, in their order."""
    columns: list[torch.Tensor | None] = [None] * len(directions)
    for site in dict.fromkeys(direction.site for direction in directions):
        places = [place for place, direction in enumerate(directions) if direction.site == site]
        rows = activations[site].float()
        vectors = torch.from_numpy(np.stack([directions[place].vector for place in places])).to(rows)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        scores = rows @ vectors.T
        if scoring == "cosine":
            scores = scores / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
        for column, place in enumerate(places):
            columns[place] = scores[:, column]
    return torch.stack([column for column in columns if column is not None], dim=1)


def scored_from(token_id: np.ndarray, position: np.ndarray, prefix: Sequence[int]) -> int:
    """First of one prompt's rows that is scored: after the first token, or after the prefix it begins with."""
    last = len(token_id) - 1
    start = 0
    while start < last and position[start] == start:
        if start and (start >= len(prefix) or token_id[start] != prefix[start] or token_id[0] != prefix[0]):
            break
        start += 1
    return start


@dataclass(kw_only=True)
class ExtremesSink:
    """Per prompt and direction the largest score and the largest negated score over its tokens, and where they are.

    Columns `extremes.<name>`, float32 [t, 2] a prompt, and `positions.<name>`, int32 [t, 2] a prompt; NaN and −1
    for a prompt that was not run.
    """

    directions: tuple[Direction, ...]
    scoring: str = "cosine"
    prefix: tuple[int, ...] = ()
    _values: np.ndarray = field(init=False, repr=False)
    _positions: np.ndarray = field(init=False, repr=False)

    @property
    def name(self) -> str:
        return f"directions-{digest_json(self.settings())[:12]}"

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(direction.site for direction in self.directions))

    @property
    def columns(self) -> Mapping[str, str]:
        return {f"extremes.{self.name}": "prompt", f"positions.{self.name}": "prompt"}

    def settings(self) -> dict[str, Any]:
        return {
            "sink": "extremes",
            "scoring": self.scoring,
            "prefix": list(self.prefix),
            "directions": [[d.site, sha256(np.ascontiguousarray(d.vector).tobytes())] for d in self.directions],
        }

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        shape = (prompts.num_rows, len(self.directions), 2)
        self._values = np.full(shape, np.nan, np.float32)
        self._positions = np.full(shape, -1, np.int32)

    def add(self, batch: SinkBatch) -> None:
        scores = direction_scores(batch.activations, self.directions, scoring=self.scoring)
        for prompt, rows, first in prompt_rows(batch, self.prefix):
            part = scores[first : rows.stop]
            for side, signed in enumerate((part, -part)):
                best = signed.max(dim=0)
                self._values[prompt, :, side] = best.values.cpu().numpy()
                self._positions[prompt, :, side] = batch.position[first + best.indices.cpu().numpy()]

    def finish(self) -> list[SinkColumn]:
        values, positions = self.columns
        return [
            SinkColumn(name=values, rows="prompt", values=self._values),
            SinkColumn(name=positions, rows="prompt", values=self._positions),
        ]


@dataclass(kw_only=True)
class MonitorSink:
    """A calibrated monitor's verdict on every prompt: kilobytes for a million prompts.

    Columns `scores.<monitor>`, float32 [2] a prompt: the largest standardised score and its raw value; and
    `fired.<monitor>`, int32 [3] a prompt: direction, side (0 up, 1 down), token position. NaN and −1 for a prompt
    that was not run, or with a score that is not finite along any direction.
    """

    monitor: Monitor
    _extremes: ExtremesSink = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._id = self.monitor.id
        self._extremes = ExtremesSink(
            directions=self.monitor.directions, scoring=self.monitor.scoring, prefix=self.monitor.prefix
        )

    @property
    def sites(self) -> tuple[str, ...]:
        return self._extremes.sites

    @property
    def columns(self) -> Mapping[str, str]:
        return {f"scores.{self._id}": "prompt", f"fired.{self._id}": "prompt"}

    def settings(self) -> dict[str, Any]:
        return {"sink": "monitor", "monitor": self._id}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._extremes.start(unit, prompts)

    def add(self, batch: SinkBatch) -> None:
        self._extremes.add(batch)

    def finish(self) -> list[SinkColumn]:
        extremes, positions = (column.values for column in self._extremes.finish())
        found = self.monitor.score(extremes)
        rows = np.arange(len(extremes))
        unscored = np.isnan(found.score)
        raw = extremes[rows, found.direction, found.side] * np.where(found.side == 0, 1, -1)
        raw = np.where(unscored, np.nan, raw)
        place = np.where(unscored, -1, positions[rows, found.direction, found.side])
        scores, fired = self.columns
        return [
            SinkColumn(name=scores, rows="prompt", values=np.stack([found.score, raw], axis=1).astype(np.float32)),
            SinkColumn(
                name=fired,
                rows="prompt",
                values=np.stack([found.direction, found.side, place], axis=1).astype(np.int32),
            ),
        ]


@dataclass(kw_only=True)
class TokenScoreSink:
    """Every token's score along every direction: column `tokens.<name>`, float32 [t] a token. For a few prompts."""

    directions: tuple[Direction, ...]
    scoring: str = "cosine"
    _rows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, init=False, repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(direction.site for direction in self.directions))

    @property
    def columns(self) -> Mapping[str, str]:
        return {f"tokens.directions-{digest_json(self.settings())[:12]}": "token"}

    def settings(self) -> dict[str, Any]:
        return ExtremesSink(directions=self.directions, scoring=self.scoring).settings() | {"sink": "token scores"}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._rows = [(np.zeros(0, np.int32), np.zeros((0, len(self.directions)), np.float32))]

    def add(self, batch: SinkBatch) -> None:
        scores = direction_scores(batch.activations, self.directions, scoring=self.scoring)
        self._rows.append((batch.prompt.copy(), scores.cpu().numpy()))

    def finish(self) -> list[SinkColumn]:
        prompt = np.concatenate([prompts for prompts, _ in self._rows])
        values = np.concatenate([scores for _, scores in self._rows])[np.argsort(prompt, kind="stable")]
        (name,) = self.columns
        return [SinkColumn(name=name, rows="token", values=values)]


def prompt_rows(batch: SinkBatch, prefix: Sequence[int]) -> list[tuple[int, slice, int]]:
    """(prompt, its rows in the batch, the first of them that is scored) for each prompt of a batch."""
    starts = np.flatnonzero(np.diff(batch.prompt, prepend=-1))
    stops = np.append(starts, len(batch.prompt))[1:]
    found = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        first = start + scored_from(batch.token_id[start:stop], batch.position[start:stop], prefix)
        found.append((int(batch.prompt[start]), slice(start, stop), first))
    return found
