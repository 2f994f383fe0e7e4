"""Captures: the columns registered together, and the rule that a name never means two things.

A column's key is the digest of its settings: site, sink and its parameters, token selection, reduction, dtype,
numeric settings, version of the harvest's semantics. Its name is an alias of the key for the whole store.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from store.digest import digest_json
from store.errors import InputError
from store.location import Location
from store.record import decode_record, encode_record
from store.sink import ROWS

# Files that every cell has.
TAKEN = ("tokens.parquet", "zarr.json")
_FILE = re.compile(r"^captures/(\d{4,})\.json$")


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """A column as it is registered: what decides its numbers, and what a row of it speaks of."""

    name: str
    rows: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        return digest_json({"settings": dict(self.settings), "rows": self.rows})

    @property
    def path(self) -> str:
        """Folder of its array in a cell."""
        safe = re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name) and self.name not in TAKEN
        return self.name if safe else f"column-{self.key[:16]}"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ValueError(f"column {self.name!r} has rows {self.rows!r}: use one of {ROWS}")


@dataclass(frozen=True, kw_only=True)
class Capture:
    """Columns that one pass takes. `id` names its folder in every unit."""

    id: str
    columns: tuple[ColumnSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> ColumnSpec:
        return next(column for column in self.columns if column.name == name)


def read_captures(location: Location) -> list[Capture]:
    """All registered captures, oldest first; withdrawn ones have no columns."""
    return [_decode(location, number) for number in _numbers(location)]


def register_captures(location: Location, columns: list[ColumnSpec]) -> list[Capture]:
    """The captures that together hold `columns`, oldest first; columns not registered yet become a new one.

    Raises InputError where a name is registered with other settings, naming the differences.
    """
    while True:
        captures = read_captures(location)
        registered = {column.name: column for capture in captures for column in capture.columns}
        for column in columns:
            if column.name in registered and registered[column.name].key != column.key:
                raise _conflict(registered[column.name], column)
        fresh = [column for column in columns if column.name not in registered]
        if not fresh:
            wanted = {column.name for column in columns}
            return [capture for capture in captures if wanted & set(capture.names)]
        number = max((*(int(capture.id) for capture in captures), *_numbers_wanted(location)), default=0) + 1
        record = {
            "format": 1,
            "columns": [{"name": c.name, "rows": c.rows, "settings": dict(c.settings), "key": c.key} for c in fresh],
        }
        # Lost to another driver: read again, it may have registered the very same columns.
        location.create(f"captures/{number:04d}.json", encode_record(record))


def withdraw_capture(location: Location, capture_id: str) -> None:
    """Frees a capture's names. Its record stays, empty, so that its number never means something else."""
    location.write({f"captures/{capture_id}.json": encode_record({"format": 1, "columns": []})})


def _numbers(location: Location) -> Iterator[int]:
    for path in location.list("captures"):
        if match := _FILE.match(path):
            yield int(match[1])


def _numbers_wanted(location: Location) -> Iterator[int]:
    """Of captures that models were asked for: a number whose record is lost is not given to other columns."""
    for path in location.list("models"):
        if match := re.fullmatch(r"models/[^/]+/(\d{4,})\.json", path):
            yield int(match[1])


def _decode(location: Location, number: int) -> Capture:
    path = f"captures/{number:04d}.json"
    record = decode_record(location.read(path), f"{location.url}/{path}")
    columns = tuple(ColumnSpec(name=c["name"], rows=c["rows"], settings=c["settings"]) for c in record["columns"])
    return Capture(id=f"{number:04d}", columns=columns)


def _conflict(old: ColumnSpec, new: ColumnSpec) -> InputError:
    before = _flat({**old.settings, "rows": old.rows})
    after = _flat({**new.settings, "rows": new.rows})
    differences = [
        f"{name} was {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    ]
    return InputError(
        f"column {new.name!r} is in this store with other settings ({'; '.join(differences)}; key "
        f"{old.key[:12]}, asked {new.key[:12]}): ask for the same settings, or harvest into another store"
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
