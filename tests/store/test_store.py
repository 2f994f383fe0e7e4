"""The grid of cells: published once, read whole, resumed, extended, and equal by digest."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from store import ColumnSpec, IncompleteError, InputError, Store
from store.removal import withdraw_cell
from tests.store.factory import COLUMNS, WIDTH, cell_of, fill, filled_store, model_named, prompts_of


def expected(store: Store, model, name: str) -> np.ndarray:
    return np.concatenate([cell_of(model, unit)[0][name] for unit in store.units])


def test_column_reads_what_was_published(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    column = store.column(model, "resid_post.1")
    want = expected(store, model, "resid_post.1")
    assert len(store.units) == 4  # 128 KiB of characters each, so not one unit
    assert column.shape == want.shape == (2400, WIDTH)
    assert column.dtype == ml_dtypes.bfloat16
    bits = want.view(np.uint16)
    assert np.array_equal(column[:].view(np.uint16), bits)
    assert np.array_equal(np.concatenate(list(column.batches(700))).view(np.uint16), bits)
    for index in (slice(3, 9), slice(-5, None), slice(0, 2400, 501), slice(2000, 10, -7), [2399, 0, 17, 17], -1, 5):
        assert np.array_equal(column[index], want[index]), index
    mask = np.arange(2400) % 7 == 0
    assert np.array_equal(column[mask], want[mask])
    assert np.array_equal(column[3:9, 2], want[3:9, 2])
    assert np.array_equal(column[..., 4], want[..., 4])
    assert np.array_equal(np.asarray(column, dtype=np.float32), want.astype(np.float32))
    with pytest.raises(IndexError):
        column[2400]


def test_a_path_may_lead_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorstore takes no path with `..` in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store, model = filled_store(Path("../s"))
    assert store.path == str(tmp_path / "s")
    assert np.array_equal(store.column(model, "scores.m")[:], expected(store, model, "scores.m"))
    assert len(Store.open(tmp_path / "work" / ".." / "s").column(model, "resid_post.1")[:]) == 2400


def test_tokens_align_with_rows(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    tokens = store.tokens(model, "resid_post.1")
    assert tokens.num_rows == len(store.column(model, "resid_post.1"))
    assert tokens.column("prompt_id").to_pylist() == [f"p{row // 2}" for row in range(2400)]
    assert set(tokens.column("position").to_pylist()) == {1, 2}
    per_prompt = store.tokens(model, "scores.m")
    assert per_prompt.column("prompt").to_pylist() == list(range(1200))
    assert set(per_prompt.column("tokens").to_pylist()) == {2}
    assert store.all_tokens(model, "scores.m").num_rows == 3600


def test_opens_with_zarr_and_tensorstore(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    receipt = next(store.receipts())
    unit = store.units[0]
    want = cell_of(model, unit)[0]["resid_post.1"]
    root = zarr.open_group(store.path, mode="r")
    array = root[f"{receipt.folder}/resid_post.1"]
    assert array.dtype == ml_dtypes.bfloat16
    assert np.array_equal(array[:].view(np.uint16), want.view(np.uint16))
    assert "scores.m" in root[receipt.folder]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.path}/{receipt.folder}/resid_post.1/"}}
    assert np.array_equal(tensorstore.open(spec).result().read().result().view(np.uint16), want.view(np.uint16))


def test_resume_computes_only_what_is_missing(tmp_path: Path) -> None:
    whole, model = filled_store(tmp_path / "whole")
    store = Store.create(tmp_path / "cut", prompts_of(1200))
    assert fill(store, model, most=2) == 2
    assert not store.complete
    with pytest.raises(IncompleteError, match="2 of 4 units"):
        store.column(model, "resid_post.1")
    assert len(store.column(model, "resid_post.1", partial=True)) < 2400
    again = Store.create(tmp_path / "cut", prompts_of(1200))
    assert fill(again, model) == 2
    assert again.complete
    assert again.digest == whole.digest
    assert fill(again, model) == 0


def test_digest_is_blind_to_grouping_of_columns(tmp_path: Path) -> None:
    whole, model = filled_store(tmp_path / "whole")
    store = Store.create(tmp_path / "apart", prompts_of(1200))
    for column in COLUMNS:
        captures = store.register([column])
        store.want(model, captures)
        for unit, _ in store.missing(model, captures):
            columns, tokens = cell_of(model, unit)
            store.publish(model, unit, captures[0], {column.name: columns[column.name]}, tokens, {})
    assert [capture.id for capture in store.captures] == ["0001", "0002"]
    assert store.digest == whole.digest


def test_digest_sees_a_changed_value(tmp_path: Path) -> None:
    whole, model = filled_store(tmp_path / "whole")
    store = Store.create(tmp_path / "other", prompts_of(1200))
    captures = store.register(COLUMNS)
    store.want(model, captures)
    for unit, _ in store.missing(model, captures):
        columns, tokens = cell_of(model, unit)
        columns["scores.m"][0, 0] += 1e-6
        store.publish(model, unit, captures[0], columns, tokens, {})
    assert store.digest != whole.digest


def test_appended_prompts_open_new_units(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s", 700)
    before = store.units
    grown = Store.create(store.path, prompts_of(1000))
    assert grown.units[: len(before)] == before
    assert grown.units[-1].stop == 1000
    assert not grown.complete
    assert fill(grown, model) == len(grown.units) - len(before)
    assert len(grown.column(model, "scores.m")) == 1000
    with pytest.raises(InputError, match="keeps every prompt"):
        Store.create(store.path, prompts_of(500))
    with pytest.raises(InputError, match="row 0 .*differs"):
        Store.create(store.path, prompts_of(1000, first=1))


def test_second_model_shares_the_rows(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    other = model_named("b")
    fill(store, other)
    assert [known.id for known in store.models] == [model.id, other.id]
    assert store.tokens(model, "scores.m").column("prompt_id") == store.tokens(other, "scores.m").column("prompt_id")
    assert not np.array_equal(store.column(model, "scores.m")[:], store.column(other, "scores.m")[:])
    assert store.column(other.id, "scores.m")[0, 0] == store.column(other, "scores.m")[0, 0]


def test_a_name_never_means_two_things(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path / "s")
    changed = ColumnSpec(
        name="resid_post.1", rows="token", settings={"site": "resid_post.1", "dtype": "bfloat16", "threads": 2}
    )
    with pytest.raises(InputError, match="threads was 1, now 2"):
        store.register([changed])
    assert len(store.captures) == 1


def test_first_publication_wins(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    digest = store.digest
    unit, capture = store.units[0], store.captures[0]
    first = store.receipt(model.id, unit, capture.id)
    columns, tokens = cell_of(model, unit)
    assert store.publish(model, unit, capture, columns, tokens, {}) == first
    assert store.digest == digest


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s")
    with pytest.raises(InputError, match="resid_post.1, scores.m"):
        store.column(model, "resid_post.9")
    with pytest.raises(InputError, match=model.id):
        store.column("nobody", "resid_post.1")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a store"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        Store.create(tmp_path / "taken", prompts_of(3))
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def test_newer_format_is_refused(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path / "s", 30)
    root = Path(store.path) / "zarr.json"
    root.write_text(root.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(InputError, match="update thresher"):
        Store.open(store.path)


def test_a_moved_store_is_the_same_store(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s", 60)
    digest = store.digest
    shutil.move(store.path, tmp_path / "moved")
    moved = Store.open(tmp_path / "moved")
    assert moved.digest == digest
    assert len(moved.column(model.id, "scores.m")) == 60


def test_a_probe_left_by_a_killed_creation_does_not_occupy_the_place(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "probe-0123456789abcdef").write_text("1")
    store, _ = filled_store(tmp_path / "s", 30)
    assert store.complete


def test_withdrawing_a_cell_leaves_attempts_under_way_alone(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s", 30)
    (receipt,) = store.receipts()
    other = Path(store.path) / receipt.folder.rpartition("/")[0] / "77-underway"
    other.mkdir()
    (other / "zarr.json").write_text("{}")
    withdraw_cell(store, model.id, "u000000", receipt.capture)
    assert other.exists()
    assert not (Path(store.path) / receipt.folder).exists()
