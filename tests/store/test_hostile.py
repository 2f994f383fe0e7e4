"""What a shared machine, a careless hand and a race do to a store: told, refused or survived, never silent."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from store import ColumnSpec, InputError, Store
from store.cell import decode_receipt, receipt_path
from store.errors import DamageError, IncompleteError
from store.local_location import LocalLocation
from store.record import decode_record, encode_record
from store.removal import collect, garbage
from store.s3_location import AlreadyExistsError, S3Location
from store.verify import repair_store, verify_store
from tests.store.factory import cell_of, filled_store, prompts_of


@pytest.fixture
def filled(tmp_path: Path) -> Store:
    return filled_store(tmp_path / "run", 600)[0]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def unreadable(monkeypatch: pytest.MonkeyPatch, part: str, code: int) -> None:
    """Listing and looking below `part` fails, as a folder without permission or a failing disk does."""
    plain_scan, plain_stat = os.scandir, Path.stat

    def scan(path: Any) -> Any:
        if part in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return plain_scan(path)

    def stat(self: Path, **more: Any) -> Any:
        if part in str(self):
            raise OSError(code, os.strerror(code), str(self))
        return plain_stat(self, **more)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_not_empty(filled: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Otherwise `verify` finds nothing to complain of, and `gc` takes every published attempt for garbage."""
    with monkeypatch.context() as patch:
        unreadable(patch, "receipts/", code)
        for ask in (lambda: verify_store(filled), lambda: garbage(filled, older_than=0)):
            with pytest.raises((IncompleteError, DamageError), match="cannot"):
                ask()
        with pytest.raises((IncompleteError, DamageError), match="cannot"):
            filled.location.present(["receipts/x.json"])
    assert verify_store(filled) == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
def test_what_may_pass_is_no_damage(filled: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """`--repair` withdraws what is damaged: a cell is not to be lost over a busy file server."""
    plain = Path.read_bytes

    def read(self: Path) -> bytes:
        if "/c/" in str(self):
            raise OSError(code, os.strerror(code), str(self))
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(IncompleteError, match="cannot read"):
        verify_store(filled)


def test_a_replaced_file_is_whole_at_every_moment(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(Path(filled.path))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(IncompleteError, match="disk is full"):
            filled.location.write({"captures/0001.json": b"anything"})
    assert snapshot(Path(filled.path)) == before


def test_drivers_that_make_one_store_at_once_never_read_half_of_its_prompts(tmp_path: Path) -> None:
    prompts = prompts_of(600)
    for turn in range(6):
        with ThreadPoolExecutor() as threads:
            made = threads.map(lambda _, turn=turn: Store.create(tmp_path / str(turn), prompts), range(4))
            assert all(len(store.prompts) == 600 for store in made)


def test_folders_that_a_deletion_removes_are_made_again(tmp_path: Path) -> None:
    location = LocalLocation(tmp_path)

    def churn(name: str) -> None:
        for _ in range(150):
            assert location.create(f"receipts/m/u/{name}.json", b"1")
            location.delete(f"receipts/m/u/{name}.json")

    with ThreadPoolExecutor() as threads:
        list(threads.map(churn, "abc"))


def test_a_conflict_on_s3_is_not_taken_for_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """409 ConditionalRequestConflict: another request was under way, and nothing may be there afterwards."""
    stored: dict[str, bytes] = {}
    answers = iter(["conflict", "conflict", "stored"])

    def put(self: S3Location, path: str, data: bytes, mode: Any = "overwrite") -> None:
        if path in stored or next(answers) == "conflict":
            raise AlreadyExistsError("conflict")
        stored[path] = data

    monkeypatch.setattr(S3Location, "_put", put)
    monkeypatch.setattr(S3Location, "_is_there", lambda self, path: path in stored)
    monkeypatch.setattr("store.s3_location.PAUSES", (0.0, 0.0, 0.0, 0.0))
    location = S3Location("bucket", "prefix")
    assert location.create("a", b"1")
    assert not location.create("a", b"2")
    assert stored == {"a": b"1"}
    answers = iter(["conflict"] * 9)
    with pytest.raises(IncompleteError, match="conflict each time"):
        location.create("b", b"1")


def receipt_file(store: Store) -> Path:
    return next(Path(store.path).glob("receipts/*/*/*.json"))


def rewritten(path: Path, **changes: Any) -> None:
    record = decode_record(path.read_bytes(), str(path))
    path.write_bytes(encode_record({**record, **changes}))


@pytest.mark.parametrize("where", ["attempt", "files", "columns"])
def test_a_receipt_leads_nowhere_else(filled: Store, tmp_path: Path, where: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    path = receipt_file(filled)
    record = decode_record(path.read_bytes(), "")
    away = "../../../../../victim"
    if where == "attempt":
        rewritten(path, attempt=away)
    elif where == "files":
        rewritten(path, files={**record["files"], f"{away}/thesis.txt": [4, "0" * 64]})
    else:
        rewritten(path, columns={name: {**each, "path": away} for name, each in record["columns"].items()})
    with pytest.raises(DamageError, match="outside of its cell"):
        decode_receipt(path.read_bytes(), str(path), path.relative_to(filled.path).as_posix())
    repair_store(filled, verify_store(filled))
    assert (victim / "thesis.txt").read_text() == "mine"


def test_a_receipt_of_a_newer_format_is_not_withdrawn(filled: Store) -> None:
    rewritten(receipt_file(filled), format=2)
    with pytest.raises(InputError, match="newer thresher"):
        verify_store(filled)


def removed(*patterns: str) -> Any:
    def remove(root: Path) -> None:
        for pattern in patterns:
            next(root.glob(pattern)).unlink()

    return remove


def swapped(first: str, second: str) -> Any:
    def swap(root: Path) -> None:
        one, other = (root / first).read_bytes(), (root / second).read_bytes()
        (root / first).write_bytes(other)
        (root / second).write_bytes(one)

    return swap


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (removed("models/*/0001.json"), "models/"),
        (removed("captures/0001.json"), "captures/0001.json"),
        (removed("cells/*/zarr.json"), "zarr.json"),
    ],
)
def test_what_was_invisible_to_verify(filled: Store, damage: Any, named: str) -> None:
    """None of it is of a cell's own making: no cell is withdrawn over it."""
    damage(Path(filled.path))
    found = verify_store(Store.open(filled.path))
    assert found
    assert all(named in each.path for each in found)
    assert repair_store(filled, found) == []
    assert list(Path(filled.path).glob("receipts/*/*/*.json"))
    if named == "zarr.json":
        assert verify_store(filled) == []


def test_a_missing_record_of_prompts_costs_no_cell(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path / "run", 600)
    Store.create(store.path, prompts_of(700))
    first = Path(store.path, "prompts/0000.json")
    second = Path(store.path, "prompts/0001.json")
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamageError, match="record that belongs there"):
        Store.open(store.path)
    first.write_bytes(kept)
    assert verify_store(Store.open(store.path)) == []


def test_desktop_litter_is_overlooked(filled: Store) -> None:
    for folder in ("", "receipts", "cells", "prompts"):
        (Path(filled.path) / folder / ".DS_Store").write_bytes(b"x")
    assert verify_store(filled) == []
    assert garbage(filled, older_than=0) == []


def test_gc_and_a_writer_that_was_late_find_each_other(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt's files are removed between their writing and the receipt: no cell without files is published."""
    receipt = next(iter(filled.receipts()))
    unit = next(unit for unit in filled.units if unit.name == receipt.unit)
    capture = next(each for each in filled.captures if each.id == receipt.capture)
    model = filled.models[0]
    columns, tokens = cell_of(model, unit)
    shutil.copytree(filled.path, f"{filled.path}-2")
    other = Store.open(f"{filled.path}-2")
    os.unlink(Path(other.path) / receipt_path(receipt.model, receipt.unit, receipt.capture))
    plain = LocalLocation.create

    def create(self: LocalLocation, path: str, data: bytes) -> bool:
        if path.startswith("receipts/"):
            for folder in garbage(other, older_than=-60):
                assert collect(other, folder) > 0
        return plain(self, path, data)

    monkeypatch.setattr(LocalLocation, "create", create)
    with pytest.raises(IncompleteError, match="gc"):
        other.publish(model, unit, capture, {name: columns[name] for name in capture.names}, tokens, {})
    assert other.receipt(model.id, unit, capture.id) is None


def test_gc_leaves_an_attempt_whose_receipt_came_meanwhile(filled: Store) -> None:
    receipt = next(iter(filled.receipts()))
    before = snapshot(Path(filled.path))
    assert collect(filled, receipt.folder) == 0
    assert snapshot(Path(filled.path)) == before


def test_a_lost_captures_number_is_not_given_to_other_columns(filled: Store) -> None:
    lost = max(Path(filled.path).glob("captures/*.json"))
    lost.unlink()
    made = filled.register([ColumnSpec(name="other", rows="prompt", settings={"sink": "x"})])
    assert made[0].id != lost.stem
