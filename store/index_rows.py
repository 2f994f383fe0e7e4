"""Rows of the index as arrays: what a hundred thousand receipts say, read in a tenth of a second."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from store.cell import Receipt
from store.digest import canonical_json, digest_json


@dataclass(frozen=True)
class RowKind:
    """What many rows have in common. columns  (name, key, dtype, shape without rows) of each, in order of names."""

    model: str
    model_digest: str
    capture: str
    columns: tuple[tuple[str, str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """A receipt's row.

    stored  bytes of all its files
    counts  first dimension of its columns, in the order of the kind's
    lines   what it adds to the store's digest: 32 bytes per column in that order, 32 of the token table
    """

    kind: RowKind
    unit: str
    attempt: str
    tokens: int
    stored: int
    counts: tuple[int, ...]
    lines: bytes


def index_row(receipt: Receipt, model_digest: str) -> IndexRow:
    columns = sorted(receipt.columns.items())
    cell = [model_digest, receipt.unit_digest]
    lines = [digest_json([*cell, column.key, column.digest]) for _, column in columns]
    lines.append(digest_json([*cell, "tokens", receipt.tokens_digest]))
    return IndexRow(
        kind=RowKind(
            receipt.model,
            model_digest,
            receipt.capture,
            tuple((name, column.key, column.dtype, column.shape[1:]) for name, column in columns),
        ),
        unit=receipt.unit,
        attempt=receipt.attempt,
        tokens=receipt.tokens,
        stored=sum(size for size, _ in receipt.files.values()),
        counts=tuple(column.shape[0] for _, column in columns),
        lines=bytes.fromhex("".join(lines)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexRows:
    """Rows as arrays, each [rows] unless said otherwise.

    kind, unit      int64, number in `kinds`, in `units`
    attempt         fixed-width bytes; tokens, stored  int64
    counts, lines   int64 [columns of all rows], uint8 [columns of all rows + rows, 32]: one row after the other
    """

    kinds: tuple[RowKind, ...]
    units: tuple[str, ...]
    kind: np.ndarray
    unit: np.ndarray
    attempt: np.ndarray
    tokens: np.ndarray
    stored: np.ndarray
    counts: np.ndarray
    lines: np.ndarray

    @staticmethod
    def of(rows: Sequence[IndexRow]) -> "IndexRows":
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(row.kind for row in rows))}
        units = {unit: number for number, unit in enumerate(dict.fromkeys(row.unit for row in rows))}
        return IndexRows(
            kinds=tuple(kinds),
            units=tuple(units),
            kind=_integers(kinds[row.kind] for row in rows),
            unit=_integers(units[row.unit] for row in rows),
            attempt=np.array([row.attempt.encode() for row in rows], dtype=np.bytes_),
            tokens=_integers(row.tokens for row in rows),
            stored=_integers(row.stored for row in rows),
            counts=_integers(count for row in rows for count in row.counts),
            lines=np.frombuffer(b"".join(row.lines for row in rows), np.uint8).reshape(-1, 32),
        )

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def widths(self) -> np.ndarray:
        """Columns of each row."""
        return _integers(len(kind.columns) for kind in self.kinds)[self.kind]

    def take(self, chosen: np.ndarray) -> "IndexRows":
        """The rows of these numbers, in that order."""
        return replace(
            self,
            kind=self.kind[chosen],
            unit=self.unit[chosen],
            attempt=self.attempt[chosen],
            tokens=self.tokens[chosen],
            stored=self.stored[chosen],
            counts=self.counts_of(chosen),
            lines=self.lines[_ragged(self.widths + 1, chosen)],
        )

    def counts_of(self, chosen: np.ndarray) -> np.ndarray:
        """The counts of these rows, one row after the other."""
        return self.counts[_ragged(self.widths, chosen)]

    def __add__(self, other: "IndexRows") -> "IndexRows":
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys([*self.kinds, *other.kinds]))}
        units = {unit: number for number, unit in enumerate(dict.fromkeys([*self.units, *other.units]))}
        moved = replace(
            other,
            kind=_integers(kinds[kind] for kind in other.kinds)[other.kind],
            unit=_integers(units[unit] for unit in other.units)[other.unit],
        )
        arrays = {name: np.concatenate([getattr(self, name), getattr(moved, name)]) for name in _ARRAYS}
        return IndexRows(kinds=tuple(kinds), units=tuple(units), **arrays)

    def rows(self) -> list[IndexRow]:
        widths = self.widths
        counts, lines = np.split(self.counts, np.cumsum(widths)[:-1]), np.split(self.lines, np.cumsum(widths + 1)[:-1])
        return [
            IndexRow(
                kind=self.kinds[self.kind[row]],
                unit=self.units[self.unit[row]],
                attempt=self.attempt[row].decode(),
                tokens=int(self.tokens[row]),
                stored=int(self.stored[row]),
                counts=tuple(counts[row].tolist()),
                lines=lines[row].tobytes(),
            )
            for row in range(len(self))
        ]

    def encode(self) -> bytes:
        """A safetensors file of the arrays; `names` holds kinds and units as JSON."""
        kinds = [[kind.model, kind.model_digest, kind.capture, kind.columns] for kind in self.kinds]
        names = np.frombuffer(canonical_json({"kinds": kinds, "units": self.units}), np.uint8)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays["attempt"] = (
            np.ascontiguousarray(self.attempt).view(np.uint8).reshape(len(self), self.attempt.dtype.itemsize)
        )
        return save({**arrays, "names": names})

    @staticmethod
    def decode(data: bytes) -> "IndexRows":
        arrays = load(data)
        names = json.loads(arrays.pop("names").tobytes())
        attempt = np.ascontiguousarray(arrays.pop("attempt"))
        kinds = tuple(
            RowKind(
                model, digest, capture, tuple((name, key, dtype, tuple(shape)) for name, key, dtype, shape in columns)
            )
            for model, digest, capture, columns in names["kinds"]
        )
        width = attempt.shape[1]
        return IndexRows(
            kinds=kinds, units=tuple(names["units"]), attempt=attempt.view(f"S{width}").reshape(-1), **arrays
        )


_ARRAYS = tuple(field.name for field in fields(IndexRows) if field.name not in ("kinds", "units"))


def _integers(values: Iterable[Any]) -> np.ndarray:
    return np.fromiter(values, np.int64)


def _ragged(widths: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the items of the chosen rows lie in a flat array in which row i has widths[i] items."""
    starts, counts = (np.cumsum(widths) - widths)[chosen], widths[chosen]
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
