"""The sink of projections: what directions say of every token or prompt, in a few bytes each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.sinks.score_rows import ScoreRows, rows_kind
from analysis.sinks.scoring import column_suffix, direction_scores, sites_of, vector_digest
from store.direction import Direction
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit


@dataclass(kw_only=True)
class ProjectionSink:
    """Scores along directions: column `projections.directions-<digest>`, float32 [t] a row, in their order.

    directions  at any sites; their names are in the column's settings, and their numbers as digests
    scoring     `projection` on each direction, or `cosine` with it
    reduce      `none`: a row per token; `max` or `mean` over a prompt's tokens: a row per prompt
    """

    directions: tuple[Direction, ...]
    scoring: str = "projection"
    reduce: str = "none"
    _rows: ScoreRows = field(init=False, repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        return sites_of(self.directions)

    @property
    def columns(self) -> Mapping[str, str]:
        return {f"projections.{column_suffix(self.settings())}": rows_kind(self.reduce)}

    def settings(self) -> dict[str, Any]:
        return {
            "sink": "projections",
            "scoring": self.scoring,
            "reduce": self.reduce,
            "directions": [[d.name, d.site, vector_digest(d)] for d in self.directions],
        }

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._rows = ScoreRows(reduce=self.reduce, prompts=prompts.num_rows, width=(len(self.directions),))

    def add(self, batch: SinkBatch) -> None:
        scores = direction_scores(batch.activations, self.directions, scoring=self.scoring)
        self._rows.add(batch.prompt, scores.cpu().numpy())

    def finish(self) -> list[SinkColumn]:
        ((name, rows),) = self.columns.items()
        values = self._rows.assembled().astype(np.float32)
        return [SinkColumn(name=name, rows=rows, values=values)]
