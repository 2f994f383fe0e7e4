"""The prompts of a store: sealed batches of units, each a Parquet file published by a record.

The first batch is written when the store is created; every later one holds appended prompts and opens new units.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet

from store.digest import sha256
from store.errors import DamageError, InputError
from store.location import Location
from store.prompt_set import PromptSet
from store.record import decode_record, encode_record
from store.unit import Unit, plan_units


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """A sealed batch: its file, that file's SHA-256, and its units, whose rows count through the whole store."""

    number: int
    file: str
    sha256: str
    units: tuple[Unit, ...]


def read_batches(location: Location) -> list[PromptBatch]:
    """All sealed batches in order. Raises DamageError where a record is not what was written."""
    return list(_batches(location))


def read_prompts(location: Location, batches: Sequence[PromptBatch]) -> PromptSet:
    """The prompt set of the batches. Raises DamageError where a file is missing or altered."""
    return PromptSet(pa.concat_tables([_read(location, batch) for batch in batches]).combine_chunks())


def append_prompts(location: Location, prompts: PromptSet) -> None:
    """Makes the store's prompts equal `prompts`: the first batch, or what they add to those that are there.

    Raises InputError where `prompts` neither equal nor extend the store's, naming the first that differs.
    """
    while True:
        batches = read_batches(location)
        stored = read_prompts(location, batches).table if batches else None
        known = 0 if stored is None else stored.num_rows
        if stored is not None:
            _check_extends(location, stored, prompts)
            if known == len(prompts):
                return
        fresh = prompts.table.slice(known)
        units = plan_units(
            fresh,
            prompts.lengths[known:],
            first_index=sum(len(batch.units) for batch in batches),
            first_row=known,
        )
        data = _encode(fresh, units)
        digest = sha256(data)
        file = f"prompts/{digest[:16]}.parquet"
        # Named by its content: whoever was first wrote the same.
        location.create(file, data)
        record = {"format": 1, "file": file, "sha256": digest, "units": [asdict(unit) for unit in units]}
        # Lost to another driver: compare with what it sealed.
        location.create(f"prompts/{len(batches):04d}.json", encode_record(record))


def _batches(location: Location) -> Iterator[PromptBatch]:
    number = opened = 0
    while True:
        path = f"prompts/{number:04d}.json"
        try:
            record = decode_record(location.read(path), f"{location.url}/{path}")
        except FileNotFoundError:
            return
        units = tuple(Unit(**unit) for unit in record["units"])
        if [unit.index for unit in units] != list(range(opened, opened + len(units))):
            raise DamageError(f"{location.url}/{path} is not the record that belongs there: restore it from a copy")
        opened += len(units)
        yield PromptBatch(number=number, file=record["file"], sha256=record["sha256"], units=units)
        number += 1


def _read(location: Location, batch: PromptBatch) -> pa.Table:
    try:
        data = location.read(batch.file)
    except FileNotFoundError as error:
        raise DamageError(f"{location.url}/{batch.file} is missing: the store's prompts are lost") from error
    if sha256(data) != batch.sha256:
        raise DamageError(f"{location.url}/{batch.file} is damaged: restore it from a copy of the prompts")
    return pyarrow.parquet.ParquetFile(io.BytesIO(data)).read().drop_columns(["unit"])


def _encode(table: pa.Table, units: list[Unit]) -> bytes:
    names = pa.array([unit.name for unit in units for _ in range(len(unit))], pa.string())
    buffer = io.BytesIO()
    marked = table.append_column("unit", names)
    pyarrow.parquet.write_table(marked, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _check_extends(location: Location, stored: pa.Table, prompts: PromptSet) -> None:
    given = prompts.table
    if given.schema.remove_metadata() != stored.schema.remove_metadata():
        raise InputError(
            f"{location.url} holds prompts with columns {_columns(stored)}, not {_columns(given)}: give the same "
            "prompts and column mapping, or harvest into another store"
        )
    if len(prompts) < stored.num_rows:
        raise InputError(
            f"{location.url} holds {stored.num_rows} prompts and {len(prompts)} were given: a store keeps every "
            "prompt it was given; give the same ones, or harvest into another store"
        )
    if given.slice(0, stored.num_rows).equals(stored):
        return
    for row in range(stored.num_rows):
        if not given.slice(row, 1).equals(stored.slice(row, 1)):
            identity = stored.column("prompt_id")[row].as_py()
            raise InputError(
                f"{location.url} holds other prompts: row {row} (prompt {identity!r}) differs; new prompts go after "
                "the old ones, changed ones into another store"
            )


def _columns(table: pa.Table) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in table.schema)
