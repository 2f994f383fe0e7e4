"""Reading a column: the rows of all its cells, in the order of the prompts, as one array."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import Any

import ml_dtypes
import numpy as np

from store.arrays import Reading, chunk_rows, open_array, read_rows, start_read
from store.cell import Receipt
from store.digest import digest_sequence
from store.errors import DamageError, InputError
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
        """Rows by integer, slice, boolean mask or integers, then numpy's rules for what follows a comma.

        Raises IndexError for rows that are not there, and for what numpy would take and this does not: rows by more
        than one axis of integers, and new axes.
        """
        rows, *rest = (index or (Ellipsis,)) if isinstance(index, tuple) else (index,)
        if rows is Ellipsis:
            rows, rest = slice(None), [Ellipsis, *rest]
        if isinstance(rows, (int, np.integer)) and not isinstance(rows, (bool, np.bool_)):
            position = int(rows) + len(self) if rows < 0 else int(rows)
            if not 0 <= position < len(self):
                raise IndexError(f"row {rows} is out of range for {len(self)} rows of {self.name!r}")
            values = self._slice(position, position + 1, 1)[0]
            return np.asarray(values[tuple(rest)] if rest else values)
        if isinstance(rows, slice):
            values = self._slice(*rows.indices(len(self)))
        else:
            positions = self._positions(np.asarray(rows))
            values = self._gather(positions)
            # Lists behind the comma go with the rows one to one, as numpy has them.
            if any(isinstance(each, (list, np.ndarray)) for each in rest):
                return np.asarray(values[(np.arange(len(positions)), *rest)])
        return np.asarray(values[(slice(None), *rest)] if rest else values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype, copy=False)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, `rows` at a time; the last batch may be shorter. Holds one batch at a time.

        Raises InputError for fewer than one.
        """
        if rows < 1:
            raise InputError(f"{rows} rows make no batch: ask for at least 1")
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def per_unit(self) -> Iterator[np.ndarray]:
        """The column's values of each unit, in unit order."""
        for number in range(len(self.receipts)):
            yield read_rows(self._open(number), slice(None), self._where(number))

    def chunks(self) -> np.ndarray:
        """First row of every chunk and, last, the number of rows: int64 [chunks + 1].

        Rows between two of these are read and decoded at once; a cell begins a chunk of its own.
        """
        starts, begin = [], 0
        for number, end in enumerate(self._borders):
            if begin < end:
                starts.append(np.arange(begin, end, chunk_rows(self._open(number)), dtype=np.int64))
            begin = end
        return np.concatenate([*starts, np.array([begin], dtype=np.int64)])

    def read_into(self, ranges: Sequence[tuple[int, int]], into: np.ndarray) -> None:
        """Reads the rows [start, stop) of every range, one range after the other, into `into`; all at once."""
        readings: list[Reading] = []
        filled = 0
        for start, stop in ranges:
            part = into[filled : filled + stop - start]
            readings += self._start_range(start, stop, part)
            filled += stop - start
        _wait(readings)

    def to_dask(self) -> Any:
        """The column as a lazy dask array, a block per unit. Needs dask: `pip install dask`."""
        try:
            # Imported here: only this method needs it, and thresher does not depend on it.
            import dask.array
        except ImportError as error:
            raise InputError("to_dask needs dask, which is not installed: run 'pip install dask'") from error
        counts = tuple(receipt.columns[self.name].shape[0] for receipt in self.receipts)
        blocks = (tuple(count for count in counts if count) or (0,), *((size,) for size in self.shape[1:]))
        # Named by content, so that equal columns share their blocks.
        token = digest_sequence(receipt.columns[self.name].digest for receipt in self.receipts)
        return dask.array.from_array(self, chunks=blocks, name=f"{self.name}-{token[:16]}", asarray=True, meta=self[:0])

    def unit_start(self, number: int) -> int:
        """First row of the `number`-th unit that the column holds."""
        return self._borders[number - 1] if number else 0

    @cached_property
    def _borders(self) -> list[int]:
        return list(accumulate(receipt.columns[self.name].shape[0] for receipt in self.receipts))

    def _positions(self, index: np.ndarray) -> np.ndarray:
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"the mask has shape {index.shape}, the column {len(self)} rows")
            return np.flatnonzero(index)
        if index.size == 0 and index.ndim == 1:
            return index.astype(np.int64)
        if index.dtype.kind not in "iu" or index.ndim != 1:
            raise IndexError(f"rows of {self.name!r} are chosen by integers, a slice, or a mask, each of one dimension")
        index = index.astype(np.int64)
        positions = np.where(index < 0, index + len(self), index)
        if positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} go beyond {len(self)} rows of {self.name!r}")
        return np.asarray(positions)

    def _slice(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self._gather(np.arange(start, stop, step))
        values = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        self.read_into([(start, stop)], values)
        return values

    def _start_range(self, start: int, stop: int, into: np.ndarray) -> Iterator[Reading]:
        """Begins to read the rows [start, stop), a reading per cell that has some."""
        row = start
        while row < stop:
            number = bisect_right(self._borders, row)
            begin = self.unit_start(number)
            end = min(stop, self._borders[number])
            yield self._start(number, slice(row - begin, end - begin), into[row - start : end - start])
            row = end

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        """Rows in the order asked; each cell is asked once, whatever the order."""
        if positions.size and np.array_equal(positions, np.arange(positions[0], positions[0] + positions.size)):
            return self._slice(int(positions[0]), int(positions[0]) + positions.size, 1)
        values = np.empty((positions.size, *self.shape[1:]), self.dtype)
        numbers = np.searchsorted(self._borders, positions, side="right")
        parts = []
        for number in np.unique(numbers).tolist():
            begin = self.unit_start(number)
            chosen = np.flatnonzero(numbers == number)
            part = np.empty((chosen.size, *self.shape[1:]), self.dtype)
            parts.append((chosen, part, self._start(number, positions[chosen] - begin, part)))
        _wait([reading for _, _, reading in parts])
        for chosen, part, _ in parts:
            values[chosen] = part
        return values

    def _start(self, number: int, rows: slice | np.ndarray, into: np.ndarray) -> Reading:
        return start_read(self._open(number), rows, into, self._where(number))

    def _where(self, number: int) -> str:
        receipt = self.receipts[number]
        return f"{receipt.folder}/{receipt.columns[self.name].path}"

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

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; it opens the arrays itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _wait(readings: Sequence[Reading]) -> None:
    for reading in readings:
        reading.wait()


def check_uniform(name: str, receipts: Sequence[Receipt]) -> None:
    """Raises DamageError where a column's cells differ in width or dtype: they cannot be one array."""
    kinds = {(receipt.columns[name].dtype, receipt.columns[name].shape[1:]) for receipt in receipts}
    if len(kinds) > 1:
        raise DamageError(f"column {name!r} has cells of different kinds ({sorted(kinds)}): withdraw the odd ones")
