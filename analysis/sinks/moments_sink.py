"""The sink of moments: what a probe, a mean difference or a drift check needs, without keeping any activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from analysis.sinks.label_cells import cells_of, label_values
from analysis.sinks.moments import COUNT_PREFIX, COVARIANCE_PREFIX, PREFIX
from store.errors import InputError
from store.prompt_set import PromptSet
from store.sink import SinkBatch, SinkColumn
from store.unit import Unit

# Rows that are in float64 at once.
BLOCK_BYTES = 64 << 20


def second_moments_bytes(*, width: int, values: int, folds: int) -> int:
    """Bytes of one unit's second moments at one site before compression: 8 width² for each label value and fold.

    They are on the model's device while the unit runs, and then on the disk. 512 MiB for each at width 8,192.
    """
    return 8 * width**2 * values * folds


@dataclass(kw_only=True)
class MomentsSink:
    """Moments of the rows at one site, by label value and fold; of each unit, to be merged by `read_moments`.

    label   column of the prompt set; prompts where it is null are left out of all moments
    values  its values, `MomentsSink.of` finds them: the shape of the columns is the same in every unit
    folds   a prompt's fold is the hash of its group

    Columns, L values by F folds: `moments-count.SITE` int64 [L, F]; `moments.SITE` float64 [L, F, 2, width], mean and
    population variance, NaN where there is no row; with `second_moments` also `moments-covariance.SITE` float64
    [L · F · width, width], the cells' matrices one below the other, so that no row of it is too large for a chunk.
    Rows of several dimensions (heads) are flattened. A row that is not finite makes its cell NaN.

    All arithmetic is in float64 on the model's device: each block of rows around its own mean, blocks joined by the
    update of Chan, Golub and LeVeque (see `analysis.sinks.moments`).
    """

    site: str
    label: str
    values: tuple[Any, ...]
    folds: int = 5
    second_moments: bool = False
    _cells: np.ndarray = field(init=False, repr=False)
    _count: np.ndarray = field(init=False, repr=False)
    _sums: _Sums | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise InputError(f"{self.folds} folds are asked for: at least 1")

    @staticmethod
    def of(
        prompts: PromptSet, *, sites: Sequence[str], label: str, folds: int = 5, second_moments: bool = False
    ) -> list[MomentsSink]:
        """A sink per site, for all values that `label` has in `prompts`. Raises InputError as `label_values` does."""
        values = label_values(prompts, label)
        return [
            MomentsSink(site=site, label=label, values=values, folds=folds, second_moments=second_moments)
            for site in sites
        ]

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    @property
    def columns(self) -> Mapping[str, str]:
        names = [PREFIX, COUNT_PREFIX, *([COVARIANCE_PREFIX] if self.second_moments else [])]
        return {name + self.site: "unit" for name in names}

    def settings(self) -> dict[str, Any]:
        """Whether second moments are kept is told by their column: it changes no number of the others."""
        return {"sink": "moments", "label": self.label, "values": list(self.values), "folds": self.folds}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._cells = cells_of(prompts, label=self.label, values=self.values, folds=self.folds)
        self._count = np.zeros(len(self.values) * self.folds, np.int64)
        self._sums = None

    def add(self, batch: SinkBatch) -> None:
        rows = batch.activations[self.site].flatten(1)
        if self._sums is None:
            self._sums = _Sums.zeros(len(self._count), rows, squares=self.second_moments)
        of_row = self._cells[batch.prompt]
        step = max(1, BLOCK_BYTES // (8 * max(1, rows.shape[1])))
        for start in range(0, len(of_row), step):
            block = of_row[start : start + step]
            for cell in np.unique(block[block >= 0]).tolist():
                chosen = torch.from_numpy(np.flatnonzero(block == cell) + start).to(rows.device)
                self._sums.add(cell, int(self._count[cell]), rows.index_select(0, chosen).double())
                self._count[cell] += len(chosen)

    def finish(self) -> list[SinkColumn]:
        assert self._sums is not None, "a unit has at least one batch"
        shape = (len(self.values), self.folds)
        count = self._count[:, None]
        none = count == 0
        mean = np.where(none, np.nan, self._sums.mean.cpu().numpy())
        divisor = np.maximum(count, 1)
        variance = np.where(none, np.nan, self._sums.deviation.cpu().numpy() / divisor)
        values = [
            np.stack([mean, variance], axis=1).reshape(*shape, 2, -1),
            self._count.reshape(shape),
        ]
        if self._sums.product is not None:
            product = self._sums.product.cpu().numpy()
            product /= divisor[..., None]
            product[self._count == 0] = np.nan
            values.append(product.reshape(-1, product.shape[-1]))
        self._sums = None
        return [
            SinkColumn(name=name, rows="unit", values=part) for name, part in zip(self.columns, values, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """By cell, float64 on the device: means [c, w], sums of squared deviations from them [c, w], and of products of
    deviations [c, w, w] where they are asked for."""

    mean: torch.Tensor
    deviation: torch.Tensor
    product: torch.Tensor | None

    @staticmethod
    def zeros(cells: int, like: torch.Tensor, *, squares: bool) -> _Sums:
        shape = (cells, like.shape[1])
        empty = like.new_zeros(shape, dtype=torch.float64)
        product = like.new_zeros((*shape, like.shape[1]), dtype=torch.float64) if squares else None
        return _Sums(mean=empty, deviation=empty.clone(), product=product)

    def add(self, cell: int, count: int, rows: torch.Tensor) -> None:
        """Joins `rows` [n, w], which this overwrites, to a cell that has `count` rows."""
        n = len(rows)
        mean = rows.mean(0)
        rows -= mean
        step = mean - self.mean[cell] if count else torch.zeros_like(mean)
        # The step between the two means is one more deviation, of this weight.
        between = step * math.sqrt(count * n / (count + n))
        self.deviation[cell] += rows.square().sum(0) + between.square()
        if self.product is not None:
            deviations = torch.cat([rows, between[None]])
            self.product[cell].addmm_(deviations.T, deviations)
        if count:
            self.mean[cell] += step * (n / (count + n))
        else:
            self.mean[cell] = mean
