"""The loader: every row once per epoch, whatever the ranks, workers and interruptions; every chunk read once."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import store.arrays
import store.column
from analysis.loader import Batch, ColumnLoader, as_tensor
from store import Column, InputError
from tests.store.factory import filled_store

CHUNK = 40
ROW_BYTES = 48


@pytest.fixture(scope="module")
def column(tmp_path_factory: pytest.TempPathFactory) -> Column:
    """1,400 rows of 24 bfloat16 in 3 cells of chunks of 40 rows; no two rows are equal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.arrays, "CHUNK_ROWS", CHUNK)
        patch.setattr(store.arrays, "SMALLEST_CHUNK_BYTES", 1)
        opened, model = filled_store(tmp_path_factory.mktemp("loader") / "s", 700)
    found = opened.column(model, "resid_post.1")
    assert len(found.receipts) > 1
    assert len(found.chunks()) > 30
    return found


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]


loaders = st.fixed_dictionaries(
    {
        "batch_rows": st.integers(1, 700),
        "seed": st.integers(0, 2**32),
        "shuffle": st.booleans(),
        "world": st.integers(1, 5),
        "group_bytes": st.integers(1, 900 * ROW_BYTES),
    }
)
checked = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(made=loaders)
@checked
def test_every_row_once_over_all_ranks(column: Column, made: dict) -> None:
    want = column[:].view(np.int16)
    for _ in range(2):
        seen: list[int] = []
        for rank in range(made["world"]):
            loader = ColumnLoader(column, rank=rank, **made)
            expected = len(loader)
            batches = list(loader)
            assert len(batches) == expected
            assert all(batch.rows.numel() == made["batch_rows"] for batch in batches[:-1])
            for batch in batches:
                assert batch.activations.dtype == torch.bfloat16
                assert np.array_equal(batch.activations.view(torch.int16).numpy(), want[batch.rows.numpy()])
            seen += rows_of(batches)
        assert sorted(seen) == list(range(len(column)))


@given(made=loaders, stop=st.integers(0, 40), data=st.data())
@checked
def test_resuming_loses_and_doubles_nothing(column: Column, made: dict, stop: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, made["world"] - 1))
    undisturbed = ColumnLoader(column, rank=rank, **made)
    first, second = list(undisturbed), list(undisturbed)
    loader = ColumnLoader(column, rank=rank, **made)
    seen, state = [], loader.state_dict()
    for batch in loader:
        seen.append(batch)
        state = loader.state_dict()
        if len(seen) == stop:
            break
    again = ColumnLoader(column, rank=rank, **made)
    again.load_state_dict(state)
    seen += list(again)
    assert again.epoch == 1
    seen += list(again)
    assert rows_of(seen) == rows_of(first) + rows_of(second)
    assert all(torch.equal(a.activations, b.activations) for a, b in zip(seen, first + second, strict=True))


@given(made=loaders)
@checked
def test_even_ranks_give_equally_many_full_batches(column: Column, made: dict) -> None:
    loaders = [ColumnLoader(column, rank=rank, even=True, **made) for rank in range(made["world"])]
    expected = {len(loader) for loader in loaders}
    epochs = [list(loader) for loader in loaders]
    assert {len(batches) for batches in epochs} == expected
    assert len(expected) == 1
    rows = [row for batches in epochs for row in rows_of(batches)]
    assert len(set(rows)) == len(rows) == made["world"] * made["batch_rows"] * len(epochs[0])
    # Ranks differ by one chunk at the most, so no more than that and a batch is left over on any of them.
    assert len(column) - len(rows) < made["world"] * (made["batch_rows"] + CHUNK)


def test_each_chunk_is_read_once(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int, int]] = []
    start_read = store.column.start_read

    def counting(array, rows, into, where):
        read.append((where, rows.start, rows.stop))
        return start_read(array, rows, into, where)

    monkeypatch.setattr(store.column, "start_read", counting)
    for rank in range(3):
        for _ in ColumnLoader(column, batch_rows=33, rank=rank, world=3, group_bytes=200 * ROW_BYTES):
            pass
    assert len(read) == len(set(read)) == len(column.chunks()) - 1
    assert all(start % CHUNK == 0 and stop - start <= CHUNK for _, start, stop in read)


def test_memory_is_bounded_and_rows_come_from_everywhere(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read_into = Column.read_into

    def measuring(self, ranges, into):
        sizes.append(into.nbytes)
        read_into(self, ranges, into)

    monkeypatch.setattr(Column, "read_into", measuring)
    batches = list(ColumnLoader(column, batch_rows=100, group_bytes=400 * ROW_BYTES))
    assert max(sizes) <= 400 * ROW_BYTES
    assert sum(sizes) == len(column) * ROW_BYTES
    # A batch of 100 rows out of a group of ten random chunks: not of one place.
    for batch in batches[:-1]:
        assert np.unique(batch.rows.numpy() // CHUNK).size >= 5
    two = list(ColumnLoader(column, batch_rows=100, group_bytes=400 * ROW_BYTES, seed=1))
    assert rows_of(batches) != rows_of(two)
    loader = ColumnLoader(column, batch_rows=100, group_bytes=400 * ROW_BYTES)
    assert rows_of(list(loader)) == rows_of(batches)
    assert rows_of(list(loader)) != rows_of(batches), "another epoch has another order"


def test_workers_give_the_same_batches(column: Column) -> None:
    made = {"batch_rows": 64, "seed": 5, "group_bytes": 200 * ROW_BYTES}
    alone = ColumnLoader(column, **made)
    want = list(alone) + list(alone)
    loader = ColumnLoader(column, workers=2, **made)
    got = []
    for batch in loader:
        got.append(batch)
        if len(got) == 7:
            break
    got += list(loader)
    got += list(loader)
    assert rows_of(got) == rows_of(want)
    assert all(torch.equal(a.activations, b.activations) for a, b in zip(got, want, strict=True))
    resumed = ColumnLoader(column, **made)
    resumed.load_state_dict(loader.state_dict())
    assert rows_of(list(resumed)) == rows_of(list(loader))


def test_a_state_of_another_loader_is_refused(column: Column) -> None:
    state = ColumnLoader(column, batch_rows=10).state_dict()
    for other in ({"batch_rows": 11}, {"batch_rows": 10, "seed": 1}, {"batch_rows": 10, "world": 2}):
        with pytest.raises(InputError, match="belongs to another"):
            ColumnLoader(column, **other).load_state_dict(state)
    with pytest.raises(InputError, match="rank 2 of 2"):
        ColumnLoader(column, batch_rows=10, rank=2, world=2)


def test_tensors_share_memory(column: Column) -> None:
    values = column[:5]
    tensor = as_tensor(values)
    assert tensor.data_ptr() == values.ctypes.data
    assert torch.equal(tensor.float(), torch.from_numpy(values.astype(np.float32)))


def test_a_column_travels_without_its_open_arrays(column: Column) -> None:
    column[:1]
    copy = pickle.loads(pickle.dumps(column))  # noqa: S301 as multiprocessing does, between our own processes
    assert copy._opened == {}
    assert np.array_equal(copy[:].view(np.int16), column[:].view(np.int16))


def test_a_loader_runs_one_epoch_at_a_time(column: Column) -> None:
    """Two at once would share the place: rows would come twice, and others not at all."""
    loader = ColumnLoader(column, batch_rows=64)
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    with pytest.raises(InputError, match="iterated anew"):
        next(first)
    state = ColumnLoader(column, batch_rows=64).state_dict()
    with pytest.raises(InputError, match="no state"):
        loader.load_state_dict({**state, "batches": 10**6})
    with pytest.raises(InputError, match="batch_rows"):
        ColumnLoader(column, batch_rows=2.5)  # type: ignore[arg-type]
