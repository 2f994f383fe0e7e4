"""Verification: every record, every file, every checksum; what is damaged is named, never guessed at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from store.arrays import open_array, read_rows
from store.cell import GROUP, Receipt, decode_receipt, read_receipt, read_tokens
from store.digest import digest_array, digest_rows, digest_tokens, sha256
from store.errors import DamageError
from store.index import SEGMENT, marked_attempts, read_segment
from store.index_rows import IndexRow, index_row
from store.prompt_batches import read_batches
from store.record import check_record
from store.removal import withdraw_cell
from store.root import ROOT
from store.store import Store
from store.unit import Unit

Progress = Callable[[int], None]
# What a store can make again, so that a repair may remove it.
REMADE = ("index/", "certificates/")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not what was written. `cell` is model/unit/capture, None outside of cells."""

    path: str
    reason: str
    cell: tuple[str, str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What receipts are held against, as it was when the verification began.

    units     by name; captures  keys of columns by name, by capture: None where a record is damaged
    records   paths below models/ and of the groups below cells/
    """

    units: Mapping[str, Unit]
    captures: Mapping[str, Mapping[str, str]] | None
    records: frozenset[str]


def verify_store(store: Store, *, deep: bool = False, progress: Progress = lambda cells: None) -> list[Damage]:
    """All damage of a store. Every file is read; `deep` also decodes every column and digests its content."""
    groups = [path for path in store.location.list("cells") if path.endswith("/zarr.json") and path.count("/") <= 4]
    found = list(_verify_frame(store, groups))
    intact = not any(damage.path.startswith("captures/") for damage in found)
    frame = Frame(
        units={unit.name: unit for unit in store.units},
        captures=_registered(store) if intact else None,
        records=frozenset([*groups, *store.location.list("models")]),
    )
    for path in store.location.list("receipts"):
        found += _verify_receipt(store, path, deep, frame)
        progress(1)
    found += _verify_index(store)
    # What is shared by many cells was looked at with each of them.
    return list(dict.fromkeys(found))


def repair_store(store: Store, damages: list[Damage]) -> list[tuple[str, str, str]]:
    """Withdraws the damaged cells, receipt first, so that the next harvest computes exactly them again.

    What is damaged and can be made again is removed: the index by the next `thresher info`, a certificate by
    `thresher verify --deep`. So are the certificates of models that lose a cell: they spoke of it.
    """
    for damage in damages:
        if damage.path.startswith(REMADE):
            store.location.delete(damage.path)
        elif damage.path.startswith("cells/") and damage.path.endswith("/zarr.json") and damage.cell is None:
            store.location.write({damage.path: GROUP})
    cells = sorted({damage.cell for damage in damages if damage.cell is not None})
    for model, unit, capture in cells:
        withdraw_cell(store, model, unit, capture)
    for model in {cell[0] for cell in cells}:
        for path in list(store.location.list(f"certificates/{model}")):
            store.location.delete(path)
    return cells


def _verify_frame(store: Store, groups: Sequence[str]) -> Iterator[Damage]:
    """What is not a cell: root, groups, prompts, captures, wanted models."""
    location = store.location
    if location.read("zarr.json") != ROOT:
        yield Damage(path="zarr.json", reason="the root group is not what was written")
    try:
        for batch in read_batches(location):
            for unit in batch.units:
                if digest_rows(store.unit_prompts(unit)) != unit.digest:
                    yield Damage(path=batch.file, reason=f"the prompts of {unit.name} are not those that were planned")
    except DamageError as error:
        yield Damage(path="prompts", reason=str(error))
    for folder in ("prompts", "captures", "models", "certificates"):
        for path in location.list(folder):
            if not path.endswith(".json"):
                continue
            try:
                check_record(location.read(path), path)
            except DamageError:
                yield Damage(path=path, reason="its checksum is wrong")
    for path in groups:
        if location.read(path) != GROUP:
            yield Damage(path=path, reason="the group is not what was written")


def _verify_receipt(store: Store, path: str, deep: bool, frame: Frame) -> Iterator[Damage]:
    cell = _cell_of(path)
    if cell is None:
        yield Damage(path=path, reason="it is no receipt: remove it")
        return
    try:
        data = store.location.read(path)
        check_record(data, path)
        receipt = decode_receipt(data, path, path)
    except FileNotFoundError:  # withdrawn since it was listed
        return
    except DamageError as error:
        yield Damage(path=path, reason=str(error).split(":")[0], cell=cell)
        return
    # What is not of the cell's own making is not mended by computing the cell again.
    unit = frame.units.get(receipt.unit)
    if unit is None:
        yield Damage(path=path, reason=f"a record in prompts/ is missing: no prompts are known of {receipt.unit}")
    elif unit.digest != receipt.unit_digest:
        yield Damage(path=path, reason="it speaks of other prompts than the store holds", cell=cell)
    yield from _verify_asked(store, receipt, frame)
    broken = False
    for name, (size, digest) in receipt.files.items():
        reason = _check_file(store, f"{receipt.folder}/{name}", size, digest)
        if reason:
            broken = True
            yield Damage(path=f"{receipt.folder}/{name}", reason=reason, cell=cell)
    if deep and not broken:
        yield from _verify_content(store, receipt, cell)


def _registered(store: Store) -> dict[str, dict[str, str]]:
    """Keys of columns by name, by capture."""
    return {capture.id: {column.name: column.key for column in capture.columns} for capture in store.captures}


def _verify_asked(store: Store, receipt: Receipt, frame: Frame) -> Iterator[Damage]:
    """That the receipt's columns are registered as they are in it, its model is wanted, and its groups are there."""
    made_of = {name: column.key for name, column in receipt.columns.items()}
    # What is not as it was when the verification began, a harvest may have made since.
    if (
        frame.captures is not None
        and made_of != frame.captures.get(receipt.capture)
        and made_of != _registered(store).get(receipt.capture)
    ):
        reason = "it is missing, or not what its cells were made of: restore it from a copy"
        yield Damage(path=f"captures/{receipt.capture}.json", reason=reason)
    parts = receipt.folder.split("/")
    groups = ["/".join([*parts[:depth], "zarr.json"]) for depth in range(1, len(parts))]
    for path in (f"models/{receipt.model}/{receipt.capture}.json", *groups):
        if path not in frame.records and not store.location.present([path]):
            yield Damage(path=path, reason="it is missing, and there are cells of it")


def _check_file(store: Store, path: str, size: int, digest: str) -> str | None:
    try:
        data = store.location.read(path)
    except FileNotFoundError:
        return "the file is missing"
    except DamageError as error:
        return str(error)
    if len(data) != size:
        return f"the file has {len(data)} bytes, not {size}"
    return None if sha256(data) == digest else "its checksum is wrong"


def _verify_content(store: Store, receipt: Receipt, cell: tuple[str, str, str]) -> Iterator[Damage]:
    for name, column in receipt.columns.items():
        where = f"{receipt.folder}/{column.path}"
        array = open_array(store.location, where, receipt.files[f"{column.path}/zarr.json"][1])
        values = read_rows(array, slice(None), where)
        if digest_array(values) != column.digest:
            yield Damage(path=where, reason=f"the content of {name} has another digest than its receipt", cell=cell)
    if digest_tokens(read_tokens(store.location, receipt)) != receipt.tokens_digest:
        yield Damage(path=receipt.folder, reason="the token table has another digest than its receipt", cell=cell)


def _verify_index(store: Store) -> Iterator[Damage]:
    """Segments that are not what was written, or hold a row that no receipt bears out."""
    for path in store.location.list("index"):
        if not SEGMENT.match(path):
            continue
        rows = read_segment(store.location, path)
        if rows is not None:
            wrong = [row for row in rows.rows() if not _borne_out(store, row)]
            # Marks are made before receipts are deleted: read now, they tell what was being withdrawn meanwhile.
            marked = marked_attempts(store.location) if wrong else frozenset()
            for row in [row for row in wrong if row.attempt not in marked][:1]:
                cell = f"{row.kind.model}/{row.unit}/{row.kind.capture}"
                yield Damage(path=path, reason=f"it does not say what the receipt of {cell} says")
        elif path in store.location.list("index"):
            yield Damage(path=path, reason="its checksum is wrong")


def _borne_out(store: Store, row: IndexRow) -> bool:
    try:
        receipt = read_receipt(store.location, row.kind.model, row.unit, row.kind.capture)
    except DamageError:  # told apart, with its cell
        return True
    return receipt is not None and index_row(receipt, row.kind.model_digest) == row


def _cell_of(path: str) -> tuple[str, str, str] | None:
    parts = path.removesuffix(".json").split("/")
    return (parts[1], parts[2], parts[3]) if len(parts) == 4 and path.endswith(".json") else None
