"""Sinks that monitors score with while prompts are harvested; no activation is stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.monitors.monitor import Monitor
from analysis.sinks.extremes_sink import ExtremesSink
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit


@dataclass(kw_only=True)
class MonitorSink:
    """A calibrated monitor's verdict on every prompt: kilobytes for a million prompts.

    Columns `scores.<monitor>`, float32 [2] a prompt: the largest standardised score and its raw value; and
    `fired.<monitor>`, int32 [4] a prompt: channel, side (0 up, 1 down), role, token position. NaN and −1 for a prompt
    that was not run, or with a score that is not finite along any direction; −inf and −1 for one without tokens of the
    monitor's roles.
    """

    monitor: Monitor
    _extremes: ExtremesSink = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._id = self.monitor.id
        self._extremes = ExtremesSink(scorer=self.monitor.scorer)

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
        nobody = found.channel < 0
        here = (np.arange(len(extremes)), found.channel, np.where(nobody, 0, 2 * found.role + found.side))
        raw = np.where(nobody, found.score, extremes[here] * np.where(found.side == 0, 1, -1))
        place = np.where(nobody, -1, positions[here])
        scores, fired = self.columns
        return [
            SinkColumn(name=scores, rows="prompt", values=np.stack([found.score, raw], axis=1).astype(np.float32)),
            SinkColumn(
                name=fired,
                rows="prompt",
                values=np.stack([found.channel, found.side, found.role, place], axis=1).astype(np.int32),
            ),
        ]
