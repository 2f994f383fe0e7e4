"""The index: says what receipts say, saves reading them, and is never believed against them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import store.summary
from store import Store
from store.digest import digest_sequence
from store.index import read_index
from store.local_location import LocalLocation
from store.marks import MARKS
from store.removal import cells_of, collect, delete_cells, garbage, withdraw_cell
from store.verify import repair_store, verify_store
from tests.store.factory import cell_of, fill, filled_store, model_named, prompts_of
from tests.store.summaries import told_by_receipts, told_by_summary


@dataclass(frozen=True)
class CountingLocation(LocalLocation):
    """Counts what is read, listed, asked for and written, by the first folder of its path."""

    counts: Counter[str] = field(default_factory=Counter)

    def read(self, path: str) -> bytes:
        self.counts[f"read {path.split('/')[0]}"] += 1
        return super().read(path)

    def list(self, prefix: str) -> Iterator[str]:
        self.counts[f"list {prefix.split('/')[0]}"] += 1
        return super().list(prefix)

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        self.counts["asked for"] += len(paths)
        return super().present(paths)

    def create(self, path: str, data: bytes) -> bool:
        self.counts[f"create {path.split('/')[0]}"] += 1
        return super().create(path, data)


def counted(opened: Store) -> tuple[Store, Counter[str]]:
    counts: Counter[str] = Counter()
    return Store(CountingLocation(Path(opened.path), counts), opened.batches), counts


def segments(opened: Store) -> list[Path]:
    return sorted((Path(opened.path) / "index").glob("*.safetensors"))


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two models, eight cells of two columns each, and the index that the first summary leaves behind."""
    monkeypatch.setattr(store.summary, "FRESH_RECEIPTS", 3)
    opened, _ = filled_store(tmp_path / "s")
    fill(opened, model_named("b"))
    opened.summary()
    assert len(segments(opened)) == 1
    return opened


def test_what_the_index_covers_is_not_read_again(indexed: Store) -> None:
    opened, counts = counted(indexed)
    assert told_by_summary(opened) == told_by_receipts(indexed)
    assert counts["read receipts"] == counts["list receipts"] == counts["asked for"] == 0
    assert counts["read index"] == counts["list index"] == 1
    assert counts["read prompts"] == 0
    assert counts["create index"] == 0


def test_only_new_receipts_are_read_and_many_of_them_make_a_new_segment(indexed: Store) -> None:
    before = segments(indexed)
    fill(indexed, model_named("c"), most=2)
    opened, counts = counted(indexed)
    assert told_by_summary(opened) == told_by_receipts(indexed)
    assert counts["asked for"] == 4
    assert counts["read receipts"] == 2
    assert segments(indexed) == before, "two new receipts are not worth a segment"
    fill(indexed, model_named("c"))
    assert told_by_summary(opened) == told_by_receipts(indexed)
    assert len(segments(indexed)) == 1
    assert segments(indexed) != before
    counts.clear()
    assert told_by_summary(opened) == told_by_receipts(indexed)
    assert counts["read receipts"] == 0


def test_appended_prompts_and_other_columns_are_seen(indexed: Store) -> None:
    grown = Store.create(indexed.path, prompts_of(1500))
    assert told_by_summary(grown) == told_by_receipts(grown)
    assert not grown.summary().complete
    for name in ("a", "b"):
        fill(grown, model_named(name))
    assert grown.summary().complete
    assert told_by_summary(grown) == told_by_receipts(grown)


def test_a_withdrawn_cell_is_gone_and_comes_back(indexed: Store) -> None:
    model, before = model_named("a"), indexed.digest
    withdraw_cell(indexed, model.id, "u000001", "0001")
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert not indexed.summary().complete
    assert fill(indexed, model) == 1
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert indexed.digest == before
    assert verify_store(indexed) == []


def test_a_deletion_killed_before_the_receipt_still_shows_the_cell(
    indexed: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = told_by_summary(indexed)

    def killed(self: LocalLocation, path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalLocation, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            withdraw_cell(indexed, model_named("a").id, "u000001", "0001")
    assert len(list((Path(indexed.path) / MARKS).iterdir())) == 1
    assert told_by_summary(indexed) == before == told_by_receipts(indexed)
    assert verify_store(indexed) == []


def test_a_segment_written_late_does_not_bring_a_deleted_cell_back(indexed: Store) -> None:
    """Whoever summarised before the deletion may write what it read after it."""
    (late,) = segments(indexed)
    data = late.read_bytes()
    delete_cells(indexed, model=model_named("a").id, capture=None)
    late.write_bytes(data)
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert {column.model for column in indexed.summary().columns} == {model_named("b").id}
    late.write_bytes(data)
    assert verify_store(indexed) == []


def test_marks_go_when_nothing_needs_them(indexed: Store) -> None:
    delete_cells(indexed, model=model_named("a").id, capture=None)
    marks = sorted((Path(indexed.path) / MARKS).iterdir())
    assert len(marks) == 4
    assert garbage(indexed, older_than=0) == [], "the segment still holds the rows that they void"
    fill(indexed, model_named("c"))
    indexed.summary()
    assert garbage(indexed, older_than=3600) == []
    found = garbage(indexed, older_than=0)
    assert found == [f"{MARKS}/{mark.name}" for mark in marks]
    assert sum(collect(indexed, path) for path in found) == 4
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert verify_store(indexed) == []


def test_a_damaged_receipt_is_withdrawn_from_the_index_too(indexed: Store) -> None:
    before = indexed.digest
    (path, *_) = sorted(Path(indexed.path).glob("receipts/*/u000002/*.json"))
    path.write_bytes(path.read_bytes()[:-30])
    damages = verify_store(indexed)
    assert [damage.cell is not None for damage in damages] == [True]
    repair_store(indexed, damages)
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert not indexed.summary().complete
    for name in ("a", "b"):
        fill(indexed, model_named(name))
    assert indexed.digest == before


@pytest.mark.parametrize("harm", ["flip", "truncate", "swap"])
def test_a_damaged_segment_is_not_believed_but_found_and_removed(indexed: Store, harm: str) -> None:
    (path,) = segments(indexed)
    sound = path.read_bytes()
    if harm == "flip":
        path.write_bytes(sound[:50] + bytes([sound[50] ^ 4]) + sound[51:])
    elif harm == "truncate":
        path.write_bytes(sound[:-7])
    else:
        path.rename(path.with_name(f"{'0' * 64}.safetensors"))
    (damage,) = verify_store(indexed)
    assert damage.path.startswith("index/")
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert repair_store(indexed, [damage]) == []
    assert verify_store(indexed) == []
    assert told_by_summary(indexed) == told_by_receipts(indexed)


def test_a_receipt_removed_by_hand_is_found(indexed: Store) -> None:
    """The one thing that the index cannot know: verify tells it, and --repair makes `info` look again."""
    next(Path(indexed.path).glob("receipts/*/u000000/*.json")).unlink()
    (damage,) = verify_store(indexed)
    assert "does not say what the receipt of" in damage.reason
    repair_store(indexed, [damage])
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert verify_store(indexed) == []


def test_two_segments_of_the_same_cells_count_once(indexed: Store) -> None:
    (first,) = segments(indexed)
    data = first.read_bytes()
    fill(indexed, model_named("c"))
    indexed.summary()
    first.write_bytes(data)
    assert len(read_index(indexed.location).segments) == 2
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert len(segments(indexed)) == 1, "overlapping segments become one"


def test_two_attempts_of_a_cell_in_the_index_are_settled_by_its_receipt(indexed: Store) -> None:
    """As it is where a receipt was removed by hand and the cell computed again."""
    model = model_named("a")
    (old,) = segments(indexed)
    data = old.read_bytes()
    (Path(indexed.path) / f"receipts/{model.id}/u000000/0001.json").unlink()
    old.unlink()
    fill(indexed, model)
    indexed.summary()
    old.write_bytes(data)
    assert len(read_index(indexed.location).segments) == 2
    opened, counts = counted(indexed)
    assert told_by_summary(opened) == told_by_receipts(indexed)
    assert counts["read receipts"] == counts["asked for"] == 1


def test_a_store_that_cannot_be_written_is_read_all_the_same(indexed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(indexed, model_named("c"))

    def refused(self: LocalLocation, path: str, data: bytes) -> bool:
        raise PermissionError(path)

    monkeypatch.setattr(LocalLocation, "create", refused)
    assert told_by_summary(indexed) == told_by_receipts(indexed)


def test_other_captures_of_a_store(indexed: Store) -> None:
    """Deleting a capture, and one model's part of another, leaves the rest as it is."""
    delete_cells(indexed, model=model_named("b").id, capture="0001")
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert cells_of(indexed, model=None, capture="0001")
    delete_cells(indexed, model=None, capture="0001")
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    assert indexed.summary().columns == ()
    fill(indexed, model_named("b"))
    assert told_by_summary(indexed) == told_by_receipts(indexed)
    unit = indexed.units[0]
    assert cell_of(model_named("b"), unit)[0]["scores.m"].shape[0] == len(unit)


def test_lines_that_begin_alike_are_in_order() -> None:
    """The digest's own sorting, against Python's: doubled lines, and such as differ in their last bytes only."""
    random = np.random.default_rng(0)
    lines = random.integers(0, 256, (400, 32), np.uint8)
    lines[100:200] = lines[:100]
    lines[200:300, :16] = lines[:100, :16]
    for chosen in (lines, lines[:200], lines[:0]):
        want = digest_sequence(["p", *sorted({line.tobytes().hex() for line in chosen})])
        assert store.summary._digest(chosen, "p") == want
