"""Rows by prompt, token, label and group: the right ones, and nothing read beside them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import tensorstore

import store.arrays as store_arrays
from store import ColumnSpec, InputError, PromptSet, Store
from store.selection import Selection
from tests.store.factory import fill, filled_store, model_named, prompts_of

READS = "/tensorstore/kvstore/file/read"


def ragged_store(folder: Path, lengths: np.ndarray, width: int) -> tuple[Store, str]:
    """A store whose prompt i has lengths[i] rows; entry (row, 0) is the prompt's number, (row, 1) the position."""
    store = Store.create(folder, prompts_of(lengths.size))
    model = model_named("a")
    captures = store.register([ColumnSpec(name="resid_post.1", rows="token", settings={"site": "resid_post.1"})])
    store.want(model, captures)
    for unit, _ in store.missing(model, captures):
        counts = lengths[unit.start : unit.stop]
        prompt = np.repeat(np.arange(len(unit), dtype=np.int32), counts)
        position = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        values = np.zeros((prompt.size, width), np.float32)
        values[:, 0], values[:, 1] = prompt + unit.start, position
        tokens = pa.table(
            {
                "prompt": prompt,
                "position": position,
                "token_id": (prompt + position) % 11,
                "role": pa.array(["user"] * prompt.size).dictionary_encode(),
                "selected": np.ones(prompt.size, bool),
            }
        )
        store.publish(model, unit, captures[0], {"resid_post.1": values}, tokens, {})
    return store, model.id


def reads_so_far() -> int:
    """File reads of this process: byte ranges asked for, whether or not two were fetched at once."""
    found = tensorstore.experimental_collect_matching_metrics(READS)
    return sum(int(value["value"]) for entry in found if entry["name"] == READS for value in entry["values"])


def test_rows_match_the_token_table(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    for name in ("resid_post.1", "scores.m"):
        selection = Selection(store=store, column=store.column(model, name))
        table = store.tokens(model, name)
        ids = np.array(table.column("prompt_id").to_pylist())
        prompts = table.column("prompt").to_numpy()
        for asked in (["p0"], ["p1199"], ["p700", "p3", "p700"], []):
            want = [row for identity in asked for row in np.flatnonzero(ids == identity)]
            assert selection.of_prompts(asked).tolist() == want
        labels = store.prompts.labels("label")[prompts]
        assert selection.where("label", 1).tolist() == np.flatnonzero(labels == 1).tolist()
        groups = store.prompts.labels("group")[prompts]
        want = np.flatnonzero(np.isin(groups, ["g7", "g300"]))
        assert selection.where("group", ["g7", "g300"]).tolist() == want.tolist()
    selection = Selection(store=store, column=store.column(model, "resid_post.1"))
    tokens = store.tokens(model, "resid_post.1").column("token_id").to_numpy()
    wanted = [int(tokens[0]), int(tokens[1700])]
    assert selection.of_tokens(wanted).tolist() == np.flatnonzero(np.isin(tokens, wanted)).tolist()


def test_prompts_without_rows_and_missing_units(tmp_path: Path) -> None:
    lengths = np.array([3, 0, 5] * 200)
    store, model = ragged_store(tmp_path / "s", lengths, 4)
    column = store.column(model, "resid_post.1")
    selection = Selection(store=store, column=column)
    assert selection.of_prompts(["p1"]).size == 0
    rows = column[selection.of_prompts(["p5", "p0"])]
    assert rows[:, 0].tolist() == [5] * 5 + [0] * 3
    assert rows[:, 1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    with pytest.raises(InputError, match="no prompt 'nobody'"):
        selection.of_prompts(["nobody"])
    with pytest.raises(InputError, match="no column 'colour'"):
        selection.where("colour", "red")

    begun = Store.create(tmp_path / "begun", prompts_of(1200))
    other = model_named("b")
    fill(begun, other, most=1)
    part = begun.column(other, "scores.m", partial=True)
    selection = Selection(store=begun, column=part)
    assert selection.where("label", [0, 1]).tolist() == list(range(len(part)))
    with pytest.raises(InputError, match="lacks units"):
        selection.of_prompts(["p1199"])


def test_a_prompt_takes_two_chunk_reads_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 random prompts, one read each, counted by tensorstore: one of the shard's index, then the chunks'."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 120, 1500)
    monkeypatch.setattr(store_arrays, "CHUNK_ROWS", 128)
    store, model = ragged_store(tmp_path / "s", lengths, 1024)
    column = store.column(model, "resid_post.1")
    assert len(column.chunks()) > 500
    selection = Selection(store=store, column=column)
    selection.where("label", [0, 1])  # opens every cell and token table
    most = 0
    before = reads_so_far()
    for prompt in random.integers(0, 1500, 10_000).tolist():
        rows = column[selection.of_prompts([f"p{prompt}"])]
        assert rows.shape[0] == lengths[prompt]
        assert (rows[:, 0] == prompt).all()
        after = reads_so_far()
        most, before = max(most, after - before), after
    assert most - 1 == 2


def test_dask_gives_the_same_rows(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    column = store.column(model, "resid_post.1")
    lazy = column.to_dask()
    assert lazy.shape == column.shape
    assert lazy.dtype == ml_dtypes.bfloat16
    assert lazy.chunks[0] == tuple(receipt.columns["resid_post.1"].shape[0] for receipt in column.receipts)
    assert np.array_equal(lazy.compute(scheduler="threads").view(np.uint16), column[:].view(np.uint16))
    want = column[:].astype(np.float64)
    assert np.allclose(lazy.astype(np.float64).mean(axis=0).compute(scheduler="threads"), want.mean(axis=0))
    assert np.array_equal(lazy[500:1500:7, 3].compute(scheduler="threads"), column[500:1500:7, 3])


@pytest.mark.parametrize(
    "index",
    [
        ([0, 1], [2, 3]),
        ([0, -1, 5], slice(1, 4)),
        ([3, 3], [0, 1]),
        (),
        (Ellipsis, 2),
        np.array([1, 255], np.uint8),
        np.array([-1, 3], np.int8),
        slice(None, None, -7),
        (slice(2, 9, 3), [1, 0]),
        [],
    ],
)
def test_indexing_is_numpys(tmp_path: Path, index: object) -> None:
    store, model = filled_store(tmp_path / "run", 300)
    column = store.column(model, "resid_post.1")
    whole = column[:].astype(np.float32)
    expected = whole[np.array(index, np.int64) if isinstance(index, list) else index]
    np.testing.assert_array_equal(column[index].astype(np.float32), expected)


@pytest.mark.parametrize("index", [True, 1.0, [0.0, 1.0], [[0, 1]], None, np.array(1), ["a"]])
def test_what_is_no_row_is_refused(tmp_path: Path, index: object) -> None:
    store, model = filled_store(tmp_path / "run", 300)
    with pytest.raises(IndexError):
        store.column(model, "resid_post.1")[index]
    with pytest.raises(InputError, match="no batch"):
        next(store.column(model, "resid_post.1").batches(-5))


def test_a_value_of_another_type_is_refused_and_none_is_a_value(tmp_path: Path) -> None:
    rows = [{"prompt_id": f"p{row}", "text": "x", "label": None if row % 3 == 0 else row % 2} for row in range(9)]
    store = Store.create(tmp_path / "run", PromptSet.from_rows(rows))
    model = model_named("a")
    fill(store, model)
    selection = Selection(store=store, column=store.column(model, "scores.m"))
    assert selection.where("label", None).tolist() == [0, 3, 6]
    assert selection.where("label", [1, None]).tolist() == [0, 1, 3, 5, 6, 7]
    with pytest.raises(InputError, match="no prompt has it"):
        selection.where("label", [1, "1"])
