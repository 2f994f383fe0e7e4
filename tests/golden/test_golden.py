"""Stores written by this and by every earlier version: they open, are whole, and hold what was put into them."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from store import Store
from store.arrays import metadata_of
from store.digest import sha256
from store.record import decode_record, encode_record
from store.root import FORMAT
from store.verify import verify_store

FOLDER = Path(__file__).parent
FORMATS = sorted(path.stem for path in FOLDER.glob("*.json"))
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def opened(name: str, place: Path) -> tuple[Store, dict[str, Any]]:
    """A copy of a golden store, so that nothing is ever written into it, and what it should hold."""
    shutil.copytree(FOLDER / name, place)
    return Store.open(place), json.loads((FOLDER / f"{name}.json").read_text())


def check(store: Store, expected: dict[str, Any]) -> None:
    assert store.complete
    assert store.digest == expected["digest"]
    assert [len(unit) for unit in store.units] == expected["units"]
    assert store.prompts.prompt_ids == expected["prompt_ids"]
    assert sorted(model.id for model in store.models) == sorted(expected["models"])
    for model, told in expected["models"].items():
        for name, want in told["columns"].items():
            column = store.column(model, name)
            values = np.concatenate(list(column.per_unit())) if want["rows"] == "unit" else column[:]
            assert (column.rows, column.dtype.name, list(values.shape)) == (want["rows"], want["dtype"], want["shape"])
            assert hashlib.sha256(values.tobytes()).hexdigest() == want["sha256"], (model, name)
            assert values[-1].astype(np.float64).reshape(-1).tolist() == want["last_row"]
            assert column.receipts[0].columns[name].key == want["key"]
            if want["rows"] != "unit":
                assert store.all_tokens(model, name).column("token_id").to_pylist() == told["token_ids"]
    assert verify_store(store, deep=True) == []


def test_there_is_one_of_the_present_format() -> None:
    assert str(FORMAT) in FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_a_golden_store_is_read(name: str, tmp_path: Path) -> None:
    store, expected = opened(name, tmp_path / "s")
    check(store, expected)
    (certificate,) = store.certificates()
    assert {**certificate, "model": None} == {**expected["certificate"], "model": None}
    summary = store.summary()
    assert {(column.model, column.name): list(column.shape) for column in summary.columns} == {
        (model, name): want["shape"]
        for model, told in expected["models"].items()
        for name, want in told["columns"].items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_without_its_index_it_says_the_same(name: str, tmp_path: Path) -> None:
    store, expected = opened(name, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "index")
    check(store, expected)


def test_arrays_of_plain_zstd_are_read(tmp_path: Path) -> None:
    """As they were written before Blosc frames: other files, the same content and digest."""
    store, expected = opened(str(FORMAT), tmp_path / "s")
    for receipt in list(store.receipts()):
        folder = tmp_path / "s" / receipt.folder
        files = {name: list(entry) for name, entry in receipt.files.items()}
        for column in receipt.columns.values():
            place = folder / column.path
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place}/"}}
            values = tensorstore.open(spec).result().read().result()
            shutil.rmtree(place)
            place.mkdir()
            metadata = metadata_of(values)
            inner = metadata["codecs"][0]["configuration"]["codecs"]
            metadata["codecs"][0]["configuration"]["codecs"] = [inner[0], ZSTD, *inner[2:]]
            (place / "zarr.json").write_text(json.dumps(metadata))
            tensorstore.open({**spec, "store_data_equal_to_fill_value": True}).result().write(values).result()
            for path in sorted(path for path in place.rglob("*") if path.is_file()):
                data = path.read_bytes()
                files[path.relative_to(folder).as_posix()] = [len(data), sha256(data)]
        path = tmp_path / "s" / f"receipts/{receipt.model}/{receipt.unit}/{receipt.capture}.json"
        path.write_bytes(encode_record({**decode_record(path.read_bytes(), "it"), "files": files}))
    shutil.rmtree(tmp_path / "s" / "index")
    check(store, expected)
