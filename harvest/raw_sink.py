"""The sink of raw activations: rows as they leave the model, put into the unit's order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from harvest.selection import reduce_rows
from harvest.unit_rows import UnitRows
from store import SinkBatch, SinkColumn, Unit


@dataclass(kw_only=True)
class RawSink:
    """Columns named by their sites: a row per selected token, or one per prompt where `reduce` is not `none`.

    Reduction (in float32) and the cast to `dtype` happen on the model's device; what is kept until the unit is
    finished is its rows on the host, and nothing of the batches they came from. A prompt without rows, such as a
    quarantined one, has NaN where a row per prompt is asked.
    """

    sites: tuple[str, ...]
    dtype: str
    reduce: str = "none"
    _prompts: int = field(default=0, init=False, repr=False)
    _rows: UnitRows = field(default_factory=UnitRows, init=False, repr=False)

    @property
    def rows(self) -> str:
        return "token" if self.reduce == "none" else "prompt"

    @property
    def columns(self) -> Mapping[str, str]:
        return dict.fromkeys(self.sites, self.rows)

    def settings(self) -> dict[str, Any]:
        return {"sink": "raw", "reduce": self.reduce, "dtype": self.dtype}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._prompts = prompts.num_rows
        self._rows = UnitRows()

    def add(self, batch: SinkBatch) -> None:
        prompts, counts = _runs(batch.prompt)
        parts = {}
        for site in self.sites:
            rows = batch.activations[site]
            if self.reduce != "none":
                rows = reduce_rows(rows, counts.tolist(), self.reduce)
            parts[site] = rows.to(getattr(torch, self.dtype))
        self._rows.add(batch.prompt if self.reduce == "none" else prompts, parts)

    def finish(self) -> list[SinkColumn]:
        if self.reduce == "none":
            values = self._rows.assembled()
        else:
            values = self._rows.assembled_per_prompt(self._prompts)
        return [SinkColumn(name=site, rows=self.rows, values=values[site]) for site in self.sites]


def _runs(prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of a batch in the order of their rows, and how many rows each has."""
    starts = np.flatnonzero(np.diff(prompt, prepend=-1))
    return prompt[starts], np.diff(starts, append=len(prompt))
