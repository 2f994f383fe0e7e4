"""Reading a column: the rows of all its cells, in the order of the prompts, as one array."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import ml_dtypes
import numpy as np

from store.arrays import open_array, read_rows
from store.cell import Receipt
from store.errors import DamageError
from store.location import Location


@dataclass(frozen=True, eq=False, kw_only=True)
class Column:
    """One column of one model: numpy-like, read lazily, rows of all units one after the other.

    name      alias, e.g. `resid_post.15`
    rows      what a row speaks of: `token` or `prompt`; `unit` columns have one entry per unit, see `per_unit`
    receipts  of the cells that hold it, in unit order

    Reading a damaged chunk raises DamageError; it never returns numbers.
    """

    location: Location
    name: str
    rows: str
    receipts: tuple[Receipt, ...]

    def __len__(self) -> int:
        return self._borders[-1] if self._borders else 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.receipts[0].columns[self.name].shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        name = self.receipts[0].columns[self.name].dtype
        return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)

    def __repr__(self) -> str:
        return f"Column({self.name!r}, shape={self.shape}, dtype={self.dtype.name}, units={len(self.receipts)})"

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by integer, slice, boolean mask or integer array, then numpy's rules for what follows a comma."""
        rows, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if rows is Ellipsis:
            rows, rest = slice(None), (Ellipsis, *rest)
        if isinstance(rows, (int, np.integer)):
            position = int(rows) + len(self) if rows < 0 else int(rows)
            if not 0 <= position < len(self):
                raise IndexError(f"row {rows} is out of range for {len(self)} rows of {self.name!r}")
            values = self._gather(np.array([position]))[0]
            return np.asarray(values[tuple(rest)] if rest else values)
        if isinstance(rows, slice):
            values = self._slice(*rows.indices(len(self)))
        else:
            values = self._gather(self._positions(np.asarray(rows)))
        return np.asarray(values[(slice(None), *rest)] if rest else values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype, copy=False)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, `rows` at a time; the last batch may be shorter. Holds one batch at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def per_unit(self) -> Iterator[np.ndarray]:
        """The column's values of each unit, in unit order."""
        for number in range(len(self.receipts)):
            yield self._read(number, slice(None))

    @cached_property
    def _borders(self) -> list[int]:
        return list(accumulate(receipt.columns[self.name].shape[0] for receipt in self.receipts))

    def _positions(self, index: np.ndarray) -> np.ndarray:
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"the mask has shape {index.shape}, the column {len(self)} rows")
            return np.flatnonzero(index)
        if index.size == 0:
            return index.astype(np.int64)
        positions = np.where(index < 0, index + len(self), index)
        if positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} go beyond {len(self)} rows of {self.name!r}")
        return np.asarray(positions)

    def _slice(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self._gather(np.arange(start, stop, step))
        parts, begin = [], 0
        for number, end in enumerate(self._borders):
            low, high = max(start, begin), min(stop, end)
            if low < high:
                parts.append(self._read(number, slice(low - begin, high - begin)))
            begin = end
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        """Rows in the order asked; each cell is asked once, whatever the order."""
        values = np.empty((positions.size, *self.shape[1:]), self.dtype)
        numbers = np.array([bisect_right(self._borders, position) for position in positions.tolist()], dtype=np.int64)
        for number in np.unique(numbers):
            begin = self._borders[number - 1] if number else 0
            chosen = numbers == number
            values[chosen] = self._read(int(number), positions[chosen] - begin)
        return values

    def _read(self, number: int, rows: slice | np.ndarray) -> np.ndarray:
        receipt = self.receipts[number]
        return read_rows(self._open(number), rows, f"{receipt.folder}/{receipt.columns[self.name].path}")

    def _open(self, number: int) -> Any:
        if number not in self._opened:
            receipt = self.receipts[number]
            column = receipt.columns[self.name]
            metadata = receipt.files[f"{column.path}/zarr.json"][1]
            array = open_array(self.location, f"{receipt.folder}/{column.path}", metadata)
            if tuple(array.shape) != column.shape:
                raise DamageError(f"{receipt.folder}/{column.path} has shape {array.shape}, not {column.shape}")
            self._opened[number] = array
        return self._opened[number]

    @cached_property
    def _opened(self) -> dict[int, Any]:
        return {}


def check_uniform(name: str, receipts: Sequence[Receipt]) -> None:
    """Raises DamageError where a column's cells differ in width or dtype: they cannot be one array."""
    kinds = {(receipt.columns[name].dtype, receipt.columns[name].shape[1:]) for receipt in receipts}
    if len(kinds) > 1:
        raise DamageError(f"column {name!r} has cells of different kinds ({sorted(kinds)}): withdraw the odd ones")
