"""What a store holds, from the index and the receipts that it does not cover.

Which cells there can be is known (wanted × units), and which of them the index covers. Only the others are looked for.
Where many of those turn out to be published, the index is written anew, so that the next one need not read them.
"""

from binascii import hexlify
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from store.cell import read_receipt, receipt_path
from store.digest import sha256
from store.index import Index, read_index, replace_segments
from store.index_rows import IndexRows, index_row
from store.location import Location

# Reading this many receipts takes about as long as starting Python.
FRESH_RECEIPTS = 64
CONCURRENT_READS = 8


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """A column of one model: `shape` over all published units, of which there are `units`."""

    model: str
    name: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    units: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All published cells that are wanted.

    digest    of the prompt set and the content, see `Store.digest`
    complete  whether every wanted cell is published
    tokens    every token that a model read, once per model; bytes  of all files of cells, as stored
    """

    digest: str
    complete: bool
    columns: tuple[ColumnSummary, ...]
    tokens: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells that a store is to have. Cell `p * len(units) + u` is of the p-th pair and the u-th unit.

    pairs  (model, capture); models  id -> digest
    """

    pairs: Sequence[tuple[str, str]]
    models: Mapping[str, str]
    units: Sequence[str]

    def __len__(self) -> int:
        return len(self.pairs) * len(self.units)

    def cell(self, number: int) -> tuple[str, str, str]:
        """(model, unit, capture)."""
        model, capture = self.pairs[number // len(self.units)]
        return model, self.units[number % len(self.units)], capture

    def numbers(self, rows: IndexRows) -> np.ndarray:
        """int64 [rows], the cell of each; -1 for one that the store is not to have."""
        pairs = {(model, self.models[model], capture): number for number, (model, capture) in enumerate(self.pairs)}
        units = {name: number for number, name in enumerate(self.units)}
        of_kind = np.array([pairs.get((k.model, k.model_digest, k.capture), -1) for k in rows.kinds], dtype=np.int64)
        of_unit = np.array([units.get(name, -1) for name in rows.units], dtype=np.int64)
        pair, unit = of_kind[rows.kind], of_unit[rows.unit]
        return np.where((pair < 0) | (unit < 0), -1, pair * len(self.units) + unit)


def summarise(location: Location, grid: Grid, prompts_digest: str) -> Summary:
    """Raises DamageError at a receipt that had to be read and is damaged."""
    index = read_index(location)
    rows, cells = _covered(index, grid)
    missing = np.setdiff1d(np.arange(len(grid)), cells, assume_unique=True)
    fresh = _read_fresh(location, grid, missing)
    if len(fresh) or len(index.segments) > 1:
        rows = rows + fresh
        rows = rows.take(np.argsort(grid.numbers(rows), kind="stable"))
    if len(fresh) >= FRESH_RECEIPTS or len(index.segments) > 1:
        replace_segments(location, rows, index.segments)
    return Summary(
        digest=_digest(rows.lines, prompts_digest),
        complete=len(rows) == len(grid),
        columns=_columns(rows, grid),
        tokens=_tokens(rows),
        bytes=int(rows.stored.sum()),
    )


def _covered(index: Index, grid: Grid) -> tuple[IndexRows, np.ndarray]:
    """Rows of the index that count, one per cell, and their cells, ascending."""
    rows = index.rows()
    numbers = grid.numbers(rows)
    order = np.argsort(numbers, kind="stable")
    order = order[np.searchsorted(numbers[order], 0) :]
    repeated = np.flatnonzero(np.diff(numbers[order]) == 0) + 1
    if repeated.size:
        # Two attempts of a cell: its receipt was removed by other means than a withdrawal. The one there now counts.
        other = rows.attempt[order[repeated]] != rows.attempt[order[repeated - 1]]
        unclear = numbers[order[repeated[other]]]
        order = order[np.setdiff1d(np.flatnonzero(~np.isin(numbers[order], unclear)), repeated)]
    return (rows if np.array_equal(order, np.arange(len(rows))) else rows.take(order)), numbers[order]


def _read_fresh(location: Location, grid: Grid, missing: np.ndarray) -> IndexRows:
    """Rows of those cells that are published."""
    cells = {receipt_path(*(cell := grid.cell(number))): cell for number in missing.tolist()}
    present = location.present(list(cells))
    with ThreadPoolExecutor(CONCURRENT_READS) as threads:
        receipts = threads.map(lambda path: read_receipt(location, *cells[path]), present)
        return IndexRows.of([index_row(each, grid.models[each.model]) for each in receipts if each is not None])


def _digest(lines: np.ndarray, prompts_digest: str) -> str:
    """`digest_sequence` of the prompts' digest and all lines in order, each once, without a string for each."""
    words = np.ascontiguousarray(lines).view(">u8").astype(np.uint64)
    words = words[np.argsort(np.ascontiguousarray(words[:, 0]))]
    tied = np.flatnonzero(words[1:, 0] == words[:-1, 0])
    if (words[tied] != words[tied + 1]).any():
        # Two lines that differ only behind their first word: one pair in 2^64.
        words = words[np.lexsort(words.T[::-1])]
        tied = np.flatnonzero((words[1:] == words[:-1]).all(axis=1))
    words = np.delete(words, tied + 1, axis=0)
    text = np.full((len(words), 65), ord("\n"), np.uint8)
    text[:, 1:] = np.frombuffer(hexlify(words.astype(">u8").tobytes()), np.uint8).reshape(-1, 64)
    return sha256(prompts_digest.encode() + text.tobytes())


def _tokens(rows: IndexRows) -> int:
    """Of all captures of a model and unit one counts: they read the same tokens."""
    models = {kind.model: number for number, kind in enumerate(rows.kinds)}
    model = np.array([models[kind.model] for kind in rows.kinds], dtype=np.int64)[rows.kind]
    _, first = np.unique(model * len(rows.units) + rows.unit, return_index=True)
    return int(rows.tokens[first].sum())


def _columns(rows: IndexRows, grid: Grid) -> tuple[ColumnSummary, ...]:
    counts = rows.counts_of(np.argsort(rows.kind, kind="stable"))
    units = np.bincount(rows.kind, minlength=len(rows.kinds)).tolist()
    starts = np.cumsum(
        [0, *(count * len(kind.columns) for count, kind in zip(units, rows.kinds, strict=True))]
    ).tolist()
    pairs = {pair: number for number, pair in enumerate(grid.pairs)}
    used = [number for number, count in enumerate(units) if count]
    found: dict[tuple[str, str], ColumnSummary] = {}
    for number in sorted(used, key=lambda each: pairs[rows.kinds[each].model, rows.kinds[each].capture]):
        kind = rows.kinds[number]
        totals = counts[starts[number] : starts[number + 1]].reshape(units[number], len(kind.columns)).sum(axis=0)
        for (name, key, dtype, shape), total in zip(kind.columns, totals.tolist(), strict=True):
            # Cells of another kind in one column are damage, which reading it tells: they are counted with the rest.
            before = found.get((kind.model, name)) or ColumnSummary(
                model=kind.model, name=name, key=key, dtype=dtype, shape=(0, *shape), units=0
            )
            found[kind.model, name] = replace(
                before, shape=(before.shape[0] + total, *before.shape[1:]), units=before.units + units[number]
            )
    return tuple(found.values())
