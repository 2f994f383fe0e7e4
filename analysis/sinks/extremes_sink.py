"""The most extreme scores of every prompt along directions: what monitors are calibrated on and decide by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.sinks.scoring import column_suffix, prompt_extremes, sites_of, vector_digest
from store.direction import Direction
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit


@dataclass(kw_only=True)
class ExtremesSink:
    """Per prompt and direction the largest score and the largest negated score over its tokens, and where they are.

    Columns `extremes.<name>`, float32 [t, 2] a prompt, and `positions.<name>`, int32 [t, 2] a prompt; NaN and −1
    for a prompt that was not run. Which tokens count is said in `analysis.sinks.scoring`.
    """

    directions: tuple[Direction, ...]
    scoring: str = "cosine"
    prefix: tuple[int, ...] = ()
    _values: np.ndarray = field(init=False, repr=False)
    _positions: np.ndarray = field(init=False, repr=False)

    @property
    def name(self) -> str:
        return column_suffix(self.settings())

    @property
    def sites(self) -> tuple[str, ...]:
        return sites_of(self.directions)

    @property
    def columns(self) -> Mapping[str, str]:
        return {f"extremes.{self.name}": "prompt", f"positions.{self.name}": "prompt"}

    def settings(self) -> dict[str, Any]:
        return {
            "sink": "extremes",
            "scoring": self.scoring,
            "prefix": list(self.prefix),
            "directions": [[direction.site, vector_digest(direction)] for direction in self.directions],
        }

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        shape = (prompts.num_rows, len(self.directions), 2)
        self._values = np.full(shape, np.nan, np.float32)
        self._positions = np.full(shape, -1, np.int32)

    def add(self, batch: SinkBatch) -> None:
        found = prompt_extremes(batch, self.directions, scoring=self.scoring, prefix=self.prefix)
        self._values[found.prompt] = found.value
        self._positions[found.prompt] = found.position

    def finish(self) -> list[SinkColumn]:
        values, positions = self.columns
        return [
            SinkColumn(name=values, rows="prompt", values=self._values),
            SinkColumn(name=positions, rows="prompt", values=self._positions),
        ]
