"""A planned location behaves as the place itself would, and that place never learns of it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import InputError, PromptSet, Store
from store.local_location import LocalLocation
from store.location import locate
from store.planned_location import PlannedLocation
from tests.store.factory import COLUMNS, filled_store, model_named, prompts_of

PATHS = st.sampled_from(["a", "b/c", "b/d", "b/e/f", "bb"])
STEPS = st.lists(st.tuples(st.sampled_from(["write", "create", "delete"]), PATHS, st.binary(max_size=3)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(before=STEPS, after=STEPS)
def test_it_answers_as_the_place_would(
    tmp_path_factory: pytest.TempPathFactory, before: list[tuple[str, str, bytes]], after: list[tuple[str, str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("place")
    (folder / "untouched").mkdir()
    base, real = LocalLocation(folder / "untouched"), LocalLocation(folder / "real")
    planned = PlannedLocation(base=base)
    for step in before:
        assert _take(base, *step) == _take(real, *step)
    held = {path: base.read(path) for path in base.list("")}
    for step in after:
        assert _take(planned, *step) == _take(real, *step)
    for prefix in ("", "a", "b", "b/e", "nothing"):
        assert sorted(planned.list(prefix)) == sorted(real.list(prefix))
    names = ["a", "b/c", "b/d", "b/e/f", "bb", "never"]
    assert list(planned.present(names)) == list(real.present(names))
    for path in names:
        if path in real.present(names):
            assert planned.read(path) == real.read(path)
        else:
            with pytest.raises(FileNotFoundError):
                planned.read(path)
    assert {path: base.read(path) for path in base.list("")} == held


def _take(location: LocalLocation | PlannedLocation, verb: str, path: str, data: bytes) -> bool | None:
    if verb == "write":
        return location.write({path: data})
    return location.create(path, data) if verb == "create" else location.delete(path)


def test_a_planned_store_is_the_one_that_create_makes(tmp_path: Path) -> None:
    prompts = prompts_of(1200)
    planned = Store.planned(tmp_path / "new", prompts)
    assert not (tmp_path / "new").exists()
    made = Store.create(tmp_path / "new", prompts)
    assert planned.units == made.units
    assert planned.path == made.path
    assert planned.prompts.table.equals(made.prompts.table)
    registered = planned.register(COLUMNS)
    assert made.captures == []
    assert made.register(COLUMNS) == registered
    model = model_named("a")
    assert planned.missing(model, registered) == made.missing(model, registered)


@pytest.mark.parametrize("more", [0, 30])
def test_planning_on_a_store_changes_no_file(tmp_path: Path, more: int) -> None:
    store, model = filled_store(tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    planned = Store.planned(tmp_path / "s", prompts_of(1200 + more))
    captures = planned.register(COLUMNS)
    assert len(planned.missing(model, captures)) == bool(more)
    planned.want(model_named("b"), captures)
    planned.summary()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before
    assert store.units == planned.units[: len(store.units)]


def test_what_create_refuses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    filled_store(tmp_path / "s", 20)
    refused = {"not empty": (tmp_path / "full", prompts_of(3)), "row 0": (tmp_path / "s", prompts_of(30, first=1))}
    for message, (path, prompts) in refused.items():
        for make in (Store.planned, Store.create):
            with pytest.raises(InputError, match=message):
                make(path, prompts)


def test_a_planned_store_in_a_bucket(bucket_url: str) -> None:
    url, prompts = f"{bucket_url}/planned", PromptSet.from_rows([{"text": "a"}, {"text": "b"}])
    assert len(Store.planned(url, prompts).units) == 1
    assert list(locate(url).list("")) == []
