"""The most extreme scores of every prompt along directions: what monitors are calibrated on and decide by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.sinks.scoring import Scorer, column_suffix, prompt_extremes
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit


@dataclass(kw_only=True)
class ExtremesSink:
    """Per prompt, channel and role the largest score and the largest negated score over tokens, and where they are.

    Columns `extremes.<name>`, float32 [c, 2 r] a prompt, and `positions.<name>`, int32 [c, 2 r] a prompt, as in
    `analysis.sinks.scoring.PromptExtremes`; NaN and −1 for a prompt that was not run.
    """

    scorer: Scorer
    _values: np.ndarray = field(init=False, repr=False)
    _positions: np.ndarray = field(init=False, repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        return self.scorer.sites

    @property
    def columns(self) -> Mapping[str, str]:
        name = column_suffix(self.settings())
        return {f"extremes.{name}": "prompt", f"positions.{name}": "prompt"}

    def settings(self) -> dict[str, Any]:
        return {"sink": "extremes", **self.scorer.settings()}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        shape = (prompts.num_rows, len(self.scorer.channels), 2 * len(self.scorer.roles))
        self._values = np.full(shape, np.nan, np.float32)
        self._positions = np.full(shape, -1, np.int32)

    def add(self, batch: SinkBatch) -> None:
        found = prompt_extremes(batch, self.scorer)
        self._values[found.prompt] = found.value
        self._positions[found.prompt] = found.position

    def finish(self) -> list[SinkColumn]:
        values, positions = self.columns
        return [
            SinkColumn(name=values, rows="prompt", values=self._values),
            SinkColumn(name=positions, rows="prompt", values=self._positions),
        ]
