"""Matrices made elsewhere become columns: the same values, at the same rows, under the same promise."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from store import InputError, ModelRef, Store
from store.export import export_store
from store.importing import import_column, labelled_model
from store.verify import verify_store
from tests.store.factory import filled_store, prompts_of

WORDS = ("prompt", "position", "token_id", "role")


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1200, 12)).astype(np.float16)


def test_a_row_per_prompt_from_npy(tmp_path: Path, matrix: np.ndarray) -> None:
    np.save(tmp_path / "m.npy", matrix)
    store = Store.create(tmp_path / "s", prompts_of(1200))
    assert len(store.units) == 4
    assert import_column(store, "a-model", "resid_post.3", tmp_path / "m.npy") == 4
    column = store.column(labelled_model("a-model"), "resid_post.3")
    assert column.dtype == np.float16
    assert np.array_equal(column[:].view(np.uint16), matrix.view(np.uint16))
    assert store.tokens(store.models[0], "resid_post.3").column("prompt_id").to_pylist()[700] == "p700"
    assert store.complete
    assert verify_store(store, deep=True) == []
    settings = store.captures[0].columns[0].settings
    assert settings["import"]["file"] == "m.npy"
    assert len(settings["import"]["sha256"]) == 64


def test_the_same_file_again_goes_on_and_another_is_refused(tmp_path: Path, matrix: np.ndarray) -> None:
    np.save(tmp_path / "m.npy", matrix)
    store = Store.create(tmp_path / "s", prompts_of(1200))
    import_column(store, "a-model", "x", tmp_path / "m.npy")
    digest = store.digest
    assert import_column(store, "a-model", "x", tmp_path / "m.npy") == 0
    assert store.digest == digest
    matrix[5, 5] += 1
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(InputError, match=r"import\.sha256 was"):
        import_column(store, "a-model", "x", tmp_path / "m.npy")
    assert store.digest == digest


@pytest.mark.parametrize("to", ["numpy", "safetensors"])
def test_export_and_import_round_trip(tmp_path: Path, to: str) -> None:
    store, model = filled_store(tmp_path / "s")
    export = export_store(store, tmp_path / "out", to=to)
    again = Store.create(tmp_path / "again", prompts_of(1200))
    for name in ("resid_post.1", "scores.m"):
        (file,) = [path for path in (export.folder / name).iterdir() if path.name != "tokens.parquet"]
        table = pyarrow.parquet.read_table(export.folder / name / "tokens.parquet")
        import_column(again, model, name, file, tokens=table.select(WORDS) if name == "resid_post.1" else None)
        values = again.column(model, name)
        before = store.column(model, name)
        assert np.array_equal(values[:].astype(np.float32), before[:].astype(np.float32))
        assert values.dtype == (np.float32 if to == "numpy" else before.dtype)
    rows, want = again.tokens(model, "resid_post.1"), store.tokens(model, "resid_post.1")
    assert rows.column_names == want.column_names
    assert all(rows.column(name).to_pylist() == want.column(name).to_pylist() for name in want.column_names)
    assert again.models == [model]


def test_several_tensors_and_bfloat16(tmp_path: Path, matrix: np.ndarray) -> None:
    wide = matrix.astype(ml_dtypes.bfloat16)
    save_file({"a": wide, "b": matrix}, tmp_path / "m.safetensors")
    store = Store.create(tmp_path / "s", prompts_of(1200))
    with pytest.raises(InputError, match="holds the tensors a, b"):
        import_column(store, "a-model", "x", tmp_path / "m.safetensors")
    import_column(store, "a-model", "x", tmp_path / "m.safetensors", tensor="a")
    column = store.column(store.models[0], "x")
    assert column.dtype == ml_dtypes.bfloat16
    assert np.array_equal(column[:].view(np.uint16), wide.view(np.uint16))


def test_what_does_not_fit_is_refused_before_anything_is_registered(tmp_path: Path, matrix: np.ndarray) -> None:
    store = Store.create(tmp_path / "s", prompts_of(1200))
    np.save(tmp_path / "short.npy", matrix[:-1])
    np.save(tmp_path / "complex.npy", matrix.astype(np.complex64))
    np.save(tmp_path / "objects.npy", np.array([{}] * 1200, dtype=object), allow_pickle=True)
    np.save(tmp_path / "m.npy", matrix)
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 40)
    tokens = pa.table({"prompt": np.arange(1200), "position": np.zeros(1200, int), "token_id": np.arange(1200)})
    backwards = tokens.set_column(0, "prompt", pa.array(np.arange(1200)[::-1]))
    for file, given, reason in (
        ("short.npy", None, "1199 rows for 1200 prompts"),
        ("complex.npy", None, "complex64"),
        ("objects.npy", None, "cannot be read"),
        ("junk.safetensors", None, "cannot be read"),
        ("nothing.npy", None, "cannot be read"),
        ("m.npy", tokens.slice(1), "1200 rows for 1199 tokens"),
        ("m.npy", tokens.drop_columns(["position"]), "lacks position"),
        ("m.npy", backwards, "not in order"),
        ("m.npy", tokens.set_column(0, "prompt", pa.array(np.arange(1200) + 1)), "speaks of prompts 1 to 1200"),
    ):
        with pytest.raises(InputError, match=reason):
            import_column(store, "a-model", "x", tmp_path / file, tokens=given)
    assert store.captures == []
    assert store.models == []


def test_a_label_is_one_model_and_no_other(tmp_path: Path) -> None:
    assert labelled_model("GPT x").digest == labelled_model("GPT x").digest
    assert labelled_model("GPT x").id != labelled_model("gpt-x").id
    assert ModelRef.from_record(labelled_model("GPT x").record()) == labelled_model("GPT x")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("token_id", [7, 2**31 + 5, 8]),
        ("token_id", [7, None, 8]),
        ("token_id", [7.0, 1.5, 8.0]),
        ("position", [-1, 0, 1]),
        ("role", ["user", None, "user"]),
    ],
)
def test_tokens_that_would_become_other_tokens_are_refused(tmp_path: Path, name: str, values: list) -> None:
    store = Store.create(tmp_path / "run", prompts_of(1))
    np.save(tmp_path / "rows.npy", np.ones((3, 2), np.float32))
    table = {"prompt": [0, 0, 0], "position": [0, 1, 2], "token_id": [7, 8, 9], name: values}
    with pytest.raises(InputError, match=name):
        import_column(store, "m", "rows", tmp_path / "rows.npy", tokens=pa.table(table))
    assert store.columns == []
