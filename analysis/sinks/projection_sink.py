"""The sink of projections: what directions say of every token or prompt, in a few bytes each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.sinks.score_rows import ScoreRows, rows_kind
from analysis.sinks.scoring import Reference, Scorer, column_suffix, vector_digest
from store.direction import Direction
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit


@dataclass(kw_only=True)
class ProjectionSink:
    """Scores along directions: column `projections.directions-<digest>`, float32 [c] a row, one for each channel.

    directions  at any sites; their names are in the column's settings, and their numbers as digests
    scoring     `projection` on each direction, or another kind of `analysis.sinks.scoring`
    reference   what `centred` and `mahalanobis` are measured from
    reduce      `none`: a row per token; `max` or `mean` over a prompt's tokens: a row per prompt
    """

    directions: tuple[Direction, ...]
    scoring: str = "projection"
    reference: Mapping[str, Reference] = field(default_factory=dict)
    reduce: str = "none"
    _scorer: Scorer = field(init=False, repr=False)
    _rows: ScoreRows = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._scorer = Scorer(directions=self.directions, kind=self.scoring, reference=self.reference)

    @property
    def sites(self) -> tuple[str, ...]:
        return self._scorer.sites

    @property
    def columns(self) -> Mapping[str, str]:
        return {f"projections.{column_suffix(self.settings())}": rows_kind(self.reduce)}

    def settings(self) -> dict[str, Any]:
        told = {
            "sink": "projections",
            "scoring": self.scoring,
            "reduce": self.reduce,
            "directions": [[d.name, d.site, vector_digest(d)] for d in self.directions],
        }
        # Without one the key is what it was before there were any.
        return {**told, "reference": self._scorer.settings()["reference"]} if self.reference else told

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        width = (len(self._scorer.channels),)
        self._rows = ScoreRows(reduce=self.reduce, prompts=prompts.num_rows, width=width)

    def add(self, batch: SinkBatch) -> None:
        scores = self._scorer.scores(batch.activations)
        self._rows.add(batch.prompt, scores.cpu().numpy())

    def finish(self) -> list[SinkColumn]:
        ((name, rows),) = self.columns.items()
        values = self._rows.assembled().astype(np.float32)
        return [SinkColumn(name=name, rows=rows, values=values)]
