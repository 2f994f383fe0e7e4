"""The sink of exemplars: of each unit, the texts that a direction scores highest and lowest, and where in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.sinks.scoring import Scorer, column_suffix, prompt_extremes, vector_digest
from store.direction import Direction
from store.errors import InputError
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit

SCORES_PREFIX, PLACES_PREFIX = "exemplars.", "exemplar-places."


@dataclass(kw_only=True)
class ExemplarSink:
    """Per direction the `n` highest and the `n` lowest tokens of a unit, to be merged by `read_exemplars`.

    A prompt has one token among the highest and one among the lowest at most, its own extremes as `ExtremesSink` has
    them: n exemplars are n texts. The first token does not count; `analysis.sinks.scoring` says which others do.

    Columns: `exemplars.directions-<digest>` float32 [t, 2, n], the scores from the highest down (side 0) and from the
    lowest up (side 1); `exemplar-places.directions-<digest>` int32 [t, 2, n, 3], their prompt (row of the unit),
    position and token id. NaN and −1 where a unit has fewer than n prompts with finite scores.
    """

    directions: tuple[Direction, ...]
    n: int
    scoring: str = "projection"
    prefix: tuple[int, ...] = ()
    _scorer: Scorer = field(init=False, repr=False)
    _scores: np.ndarray = field(init=False, repr=False)
    _places: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"{self.n} exemplars are asked for: at least 1")
        self._scorer = Scorer(directions=self.directions, kind=self.scoring, prefix=self.prefix)

    @property
    def sites(self) -> tuple[str, ...]:
        return self._scorer.sites

    @property
    def columns(self) -> Mapping[str, str]:
        name = column_suffix(self.settings())
        return {SCORES_PREFIX + name: "unit", PLACES_PREFIX + name: "unit"}

    def settings(self) -> dict[str, Any]:
        return {
            "sink": "exemplars",
            "n": self.n,
            "scoring": self.scoring,
            "prefix": list(self.prefix),
            "directions": [[d.name, d.site, vector_digest(d)] for d in self.directions],
        }

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        shape = (max(prompts.num_rows, self.n), len(self.directions), 2)
        self._scores = np.full(shape, np.nan, np.float32)
        self._places = np.full((*shape, 3), -1, np.int32)

    def add(self, batch: SinkBatch) -> None:
        found = prompt_extremes(batch, self._scorer)
        self._scores[found.prompt] = found.value
        self._places[found.prompt, :, :, 0] = found.prompt[:, None, None]
        self._places[found.prompt, :, :, 1] = found.position
        self._places[found.prompt, :, :, 2] = found.token_id

    def finish(self) -> list[SinkColumn]:
        finite = np.isfinite(self._scores)
        # Equal scores: the earlier prompt first, whatever the order of batches.
        best = np.argsort(np.where(finite, -self._scores, np.inf), axis=0, kind="stable")[: self.n]
        chosen = np.take_along_axis(finite, best, axis=0)
        scores = np.where(chosen, np.take_along_axis(self._scores, best, axis=0), np.nan)
        scores[:, :, 1] *= -1
        places = np.where(chosen[..., None], np.take_along_axis(self._places, best[..., None], axis=0), -1)
        values = (np.moveaxis(scores, 0, 2), np.moveaxis(places, 0, 2))
        return [
            SinkColumn(name=name, rows="unit", values=np.ascontiguousarray(part))
            for name, part in zip(self.columns, values, strict=True)
        ]
