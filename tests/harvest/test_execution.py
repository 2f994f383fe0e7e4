"""How a running harvest is told of, with units published by the test itself."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harvest import watching
from harvest.execution import Progress, run_units
from harvest.worker import UnitResult, UnitTask
from store import Outcome, Store
from tests.store.factory import COLUMNS, cell_of, model_named, prompts_of


@pytest.mark.parametrize("dies", [False, True])
def test_units_are_told_of_while_their_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    monkeypatch.setattr(watching, "SECONDS", 0.01)
    monkeypatch.setattr("harvest.execution.units_per_task", lambda n_units, workers: n_units)
    store, model = Store.create(tmp_path / "s", prompts_of(1200)), model_named("a")
    captures = store.register(COLUMNS)
    store.want(model, captures)
    told: list[Progress] = []

    class Pool:
        workers = 1

        def run(self, make_worker: Any, tasks: Sequence[UnitTask]) -> Iterator[Outcome[UnitTask, UnitResult]]:
            (task,) = tasks
            read = 0
            for place, (unit, absent) in enumerate(task.units):
                columns, tokens = cell_of(model, unit)
                for capture in absent:
                    kept = {name: columns[name] for name in capture.names}
                    store.publish(model, unit, capture, kept, tokens, {"quarantined": []})
                read += tokens.num_rows
                deadline = time.monotonic() + 20
                while len(told) <= place and time.monotonic() < deadline:
                    time.sleep(0.01)
            result = UnitResult(prompts=1200, tokens=read)
            yield Outcome(task=task, error="it died") if dies else Outcome(task=task, result=result)

    missing = store.missing(model, captures)
    errors, _ = run_units(store, SimpleNamespace(model=model), missing, Pool(), told.append)  # type: ignore[arg-type]
    assert [progress.prompts for progress in told[: len(missing)]] == [unit.stop for unit, _ in missing]
    assert len(told) == len(missing) + (not dies)
    assert told[-1] == Progress(prompts=1200, total=1200, tokens=3600)
    assert len(errors) == (len(missing) if dies else 0)
