"""What an export reads: one column of one model, piece by piece, with what its rows speak of."""

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pyarrow as pa

from store.column import Column
from store.store import Store

PIECE_BYTES = 16 << 20
_NOT_LABELS = ("prompt_id", "text", "messages", "response", "spans")


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """A column to be written. `folder` is its folder in the export."""

    store: Store
    column: Column
    folder: str

    @property
    def row_bytes(self) -> int:
        return max(1, int(np.prod(self.column.shape[1:])) * self.column.dtype.itemsize)

    def values(self, *, rows: int | None = None) -> Iterator[np.ndarray]:
        """The values in order, `rows` at a time (the last time fewer), or about PIECE_BYTES."""
        return self.column.batches(rows or max(1, PIECE_BYTES // self.row_bytes))

    def tables(self) -> Iterator[pa.Table]:
        """What the rows speak of, a table per unit: as `Store.tokens`, with roles as plain strings."""
        units = {unit.name: unit for unit in self.store.units}
        for receipt in self.column.receipts:
            yield _plain(self.store.rows_of(self.column, receipt, units[receipt.unit]))

    def pieces(self) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Values and what they speak of side by side, about PIECE_BYTES of values at a time."""
        first = 0
        step = max(1, PIECE_BYTES // self.row_bytes)
        for table in self.tables():
            for start in range(0, table.num_rows, step):
                part = table.slice(start, step)
                yield self.column[first + start : first + start + part.num_rows], part
            first += table.num_rows

    def labels(self) -> pa.Table:
        """The prompt set's groups, labels and metadata, a row per prompt."""
        prompts = self.store.prompts.table
        names = [name for name in prompts.column_names if name not in _NOT_LABELS]
        return prompts.select([name for name in names if not pa.types.is_nested(prompts.schema.field(name).type)])


def widened(values: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, which holds every value of it exactly; all else as it is."""
    return values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values


def widened_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == ml_dtypes.bfloat16 else dtype


def _plain(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return table
