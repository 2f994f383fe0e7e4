"""The store: one prompt set × any models × any captures, a grid of cells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from store.capture import Capture, ColumnSpec, read_captures, register_captures
from store.cell import Receipt, publish_cell, read_receipt, read_tokens
from store.column import Column, check_uniform
from store.digest import digest_sequence
from store.errors import IncompleteError, InputError
from store.location import Location, is_probe, locate, prove_exclusive_create
from store.model_ref import ModelRef
from store.names import check_name
from store.planned_location import PlannedLocation
from store.prompt_batches import PromptBatch, append_prompts, read_batches, read_prompts
from store.prompt_set import PromptSet
from store.record import decode_record, encode_record
from store.root import ROOT, read_root
from store.summary import Grid, Summary, summarise
from store.unit import Unit


@dataclass(frozen=True, eq=False)
class Store:
    """An open store. Receipts are read when they are asked for, so that an open store sees what others publish."""

    location: Location
    batches: tuple[PromptBatch, ...] = field(repr=False)

    @staticmethod
    def create(path: Path | str, prompts: PromptSet) -> "Store":
        """A new store, or the one that is there with these prompts; prompts that extend it open new units.

        Raises InputError where `path` holds something else, other prompts or a newer format.
        """
        return Store._made(locate(path), prompts)

    @staticmethod
    def planned(path: Path | str, prompts: PromptSet) -> "Store":
        """The store as `create` would leave it, and all that is then done to it, in memory: `path` stays as it is.

        Raises InputError as `create` does.
        """
        return Store._made(PlannedLocation(base=locate(path)), prompts)

    @staticmethod
    def open(path: Path | str) -> "Store":
        """An existing store. Raises InputError where there is none, or one of a newer format."""
        location = locate(path)
        if read_root(location) is None:
            raise InputError(f"{path} is not a store: make one with 'thresher harvest MODEL PROMPTS --out {path}'")
        batches = read_batches(location)
        if not batches:
            raise InputError(f"{path} is a store without prompts: the harvest that made it was stopped; run it again")
        return Store(location, tuple(batches))

    @property
    def path(self) -> str:
        return self.location.url

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return tuple(unit for batch in self.batches for unit in batch.units)

    @cached_property
    def prompts(self) -> PromptSet:
        """Read when first asked for: much can be said of a store without its texts. Raises DamageError."""
        return read_prompts(self.location, self.batches)

    def unit_prompts(self, unit: Unit) -> pa.Table:
        """The rows of the prompt set that are `unit`."""
        return self.prompts.table.slice(unit.start, len(unit))

    # ---- what is wanted ----------------------------------------------------------------------------------------

    def register(self, columns: Sequence[ColumnSpec]) -> list[Capture]:
        """The captures that hold `columns`, new ones registered. Raises InputError on a name with other settings."""
        return register_captures(self.location, list(columns))

    def want(self, model: ModelRef, captures: Sequence[Capture]) -> None:
        """Records that `model` is to be harvested with `captures`: what `complete` is measured against."""
        for capture in captures:
            record = {"format": 1, "model": model.record()}
            self.location.create(f"models/{check_name(model.id, 'model')}/{capture.id}.json", encode_record(record))

    def missing(self, model: ModelRef, captures: Sequence[Capture]) -> list[tuple[Unit, tuple[Capture, ...]]]:
        """Units with cells not published yet, each with the captures that it lacks."""
        published = {capture.id: self._published(model.id, capture.id) for capture in captures}
        lacking = (
            (unit, tuple(capture for capture in captures if unit.name not in published[capture.id]))
            for unit in self.units
        )
        return [(unit, absent) for unit, absent in lacking if absent]

    def publish(
        self,
        model: ModelRef,
        unit: Unit,
        capture: Capture,
        columns: Mapping[str, np.ndarray],
        tokens: pa.Table,
        notes: Mapping[str, Any],
    ) -> Receipt:
        """Writes and publishes one cell, exactly once; see `store.cell.publish_cell`."""
        return publish_cell(
            self.location, model=model.id, unit=unit, capture=capture, columns=columns, tokens=tokens, notes=notes
        )

    def write_certificate(self, model: ModelRef, key: str, record: Mapping[str, Any]) -> None:
        """Keeps a harvest's certificate; `key` says what it speaks of."""
        self.location.write({f"certificates/{model.id}/{key}.json": encode_record(dict(record))})

    # ---- what is there -----------------------------------------------------------------------------------------

    @property
    def captures(self) -> list[Capture]:
        return read_captures(self.location)

    @property
    def columns(self) -> list[str]:
        """Names of all registered columns."""
        return [name for capture in self.captures for name in capture.names]

    @property
    def models(self) -> list[ModelRef]:
        """The models in the store; each can be passed where a model is asked for."""
        found: dict[str, ModelRef] = {}
        for model_id, _, path in self._wants():
            if model_id not in found:
                record = decode_record(self.location.read(path), f"{self.path}/{path}")
                found[model_id] = ModelRef.from_record(record["model"])
        return list(found.values())

    def wanted(self) -> list[tuple[str, str]]:
        """(model id, capture id) of every pair that a harvest was asked for."""
        return [(model_id, capture_id) for model_id, capture_id, _ in self._wants()]

    @property
    def complete(self) -> bool:
        """True where every wanted cell is published."""
        names = {unit.name for unit in self.units}
        return all(names <= self._published(model_id, capture_id) for model_id, capture_id in self.wanted())

    def receipt(self, model_id: str, unit: Unit, capture_id: str) -> Receipt | None:
        return read_receipt(self.location, model_id, unit.name, capture_id)

    def receipts(self) -> Iterator[Receipt]:
        """Receipts of all wanted cells that are published. Raises DamageError at one that is damaged."""
        for model_id, capture_id in self.wanted():
            for unit in self.units:
                receipt = self.receipt(model_id, unit, capture_id)
                if receipt is not None:
                    yield receipt

    @property
    def digest(self) -> str:
        """Hash over the prompt set and the sorted content digests of all published cells.

        Equal whatever the number of workers, the order, crashes or retries, and however columns were grouped into
        captures. The column's key stands for its settings, the model's digest for the model.
        """
        return self.summary().digest

    def summary(self) -> Summary:
        """Columns, tokens, bytes, digest and completeness, from the index and the receipts that it does not cover.

        Fast for any number of cells; leaves an index behind where there was none. Raises DamageError.
        """
        pairs = self.wanted()
        models = {model.id: model.digest for model in self.models}
        grid = Grid(
            pairs=[pair for pair in pairs if pair[0] in models], models=models, units=[unit.name for unit in self.units]
        )
        return summarise(self.location, grid, digest_sequence(unit.digest for unit in self.units))

    def certificate(self, model: ModelRef, key: str) -> dict[str, Any] | None:
        """A stored certificate, None where there is none."""
        path = f"certificates/{model.id}/{key}.json"
        try:
            return decode_record(self.location.read(path), f"{self.path}/{path}")
        except FileNotFoundError:
            return None

    def certificates(self) -> list[dict[str, Any]]:
        """All stored certificates, each with its `model`."""
        return [
            {"model": path.split("/")[1], **decode_record(self.location.read(path), f"{self.path}/{path}")}
            for path in self.location.list("certificates")
        ]

    def column(self, model: ModelRef | str, name: str, *, partial: bool = False) -> Column:
        """A column of a model, lazily read.

        Raises InputError for an unknown model or column, naming what there is, and IncompleteError where units are
        missing, unless `partial`.
        """
        model_id, capture = self._find(model, name)
        found = [self.receipt(model_id, unit, capture.id) for unit in self.units]
        receipts = tuple(receipt for receipt in found if receipt is not None)
        if not receipts or (len(receipts) < len(self.units) and not partial):
            raise IncompleteError(
                f"column {name!r} of {model_id} has {len(receipts)} of {len(self.units)} units in {self.path}: run "
                "the same harvest again, it resumes"
            )
        check_uniform(name, receipts)
        return Column(location=self.location, name=name, rows=capture.column(name).rows, receipts=receipts)

    def tokens(self, model: ModelRef | str, name: str) -> pa.Table:
        """Row i speaks of row i of the column.

        prompt_id, prompt (int64 row of the prompt set), unit; for a column of tokens also position, token_id and
        role; for a column of prompts also tokens (int64, how many were reduced).
        """
        column = self.column(model, name)
        units = {unit.name: unit for unit in self.units}
        parts = [self.rows_of(column, receipt, units[receipt.unit]) for receipt in column.receipts]
        return pa.concat_tables(parts).combine_chunks()

    def all_tokens(self, model: ModelRef | str, name: str) -> pa.Table:
        """The whole token tables behind a column, with prompt ids: every token of every prompt, selected or not."""
        column = self.column(model, name)
        units = {unit.name: unit for unit in self.units}
        parts = [
            _with_ids(read_tokens(self.location, receipt), units[receipt.unit], self.prompts)
            for receipt in column.receipts
        ]
        return pa.concat_tables(parts).combine_chunks()

    def rows_of(self, column: Column, receipt: Receipt, unit: Unit) -> pa.Table:
        """The rows of `tokens` that speak of one unit."""
        tokens = read_tokens(self.location, receipt)
        chosen = tokens.filter(tokens.column("selected"))
        if column.rows == "token":
            return _with_ids(chosen.drop_columns(["selected"]), unit, self.prompts)
        if column.rows == "unit":
            raise InputError(f"column {column.name!r} speaks of whole units: it has no token table")
        counts = np.bincount(chosen.column("prompt").to_numpy(), minlength=len(unit))
        rows = pa.table({"prompt": pa.array(np.arange(len(unit), dtype=np.int32)), "tokens": pa.array(counts)})
        return _with_ids(rows, unit, self.prompts)

    # ---- inside ------------------------------------------------------------------------------------------------

    @staticmethod
    def _made(location: Location, prompts: PromptSet) -> "Store":
        if read_root(location) is None:
            occupied = next((path for path in location.list("") if not is_probe(path)), None)
            if occupied is not None and read_root(location) is None:
                raise InputError(
                    f"{location.url} is not a store and not empty (it holds {occupied}): give another folder"
                )
            prove_exclusive_create(location)
            location.create("zarr.json", ROOT)
        append_prompts(location, prompts)
        return Store(location, tuple(read_batches(location)))

    def _find(self, model: ModelRef | str, name: str) -> tuple[str, Capture]:
        captures = {capture.id: capture for capture in self.captures}
        if name not in {column for capture in captures.values() for column in capture.names}:
            raise InputError(f"{self.path} has no column {name!r}: it has {', '.join(self.columns) or 'none'}")
        model_id = model if isinstance(model, str) else model.resolve().id
        wanted = self.wanted()
        if model_id not in {known for known, _ in wanted}:
            known = ", ".join(sorted({known for known, _ in wanted})) or "none"
            raise InputError(f"{self.path} has no model {model_id!r}: it has {known}")
        for known, capture_id in wanted:
            if known == model_id and name in captures[capture_id].names:
                return model_id, captures[capture_id]
        raise InputError(f"{self.path} has no column {name!r} of {model_id}: harvest it first")

    def _wants(self) -> list[tuple[str, str, str]]:
        found = []
        for path in self.location.list("models"):
            parts = path.removesuffix(".json").split("/")
            if len(parts) == 3 and path.endswith(".json"):
                found.append((parts[1], parts[2], path))
        return found

    def _published(self, model_id: str, capture_id: str) -> set[str]:
        """Names of the units whose receipt is there."""
        ending = f"/{capture_id}.json"
        paths = (path for path in self.location.list(f"receipts/{model_id}") if path.endswith(ending))
        return {path.split("/")[2] for path in paths}


def _with_ids(tokens: pa.Table, unit: Unit, prompts: PromptSet) -> pa.Table:
    rows = tokens.column("prompt").to_numpy().astype(np.int64) + unit.start
    table = pa.table({"prompt_id": prompts.table.column("prompt_id").take(pa.array(rows)), "prompt": pa.array(rows)})
    table = table.append_column("unit", pa.array([unit.name] * tokens.num_rows, pa.string()))
    for name in tokens.column_names[1:]:
        table = table.append_column(name, tokens.column(name))
    return table
