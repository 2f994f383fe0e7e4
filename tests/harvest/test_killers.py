"""Prompts that kill the process they run in: found, quarantined with their ids, and everything else is harvested."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import RayPool
from harvest import NumericSettings, harvest
from harvest.bisection import MOST, find_culprits
from store import ModelRef, Outcome, PromptSet, SerialPool, SinkBatch, SinkColumn, Store, Unit

DEADLY = 77


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=MOST))
def test_every_culprit_is_found(n: int, culprits: set[int]) -> None:
    culprits = {row for row in culprits if row < n}

    def deaths(groups: Sequence[Sequence[int]]) -> list[bool]:
        return [bool(culprits & set(group)) for group in groups]

    assert find_culprits(range(n), deaths) == sorted(culprits)


def test_no_row_is_blamed_where_none_kills_alone_or_everything_does() -> None:
    assert find_culprits(range(8), lambda groups: [len(group) > 2 for group in groups]) == []
    assert find_culprits(range(64), lambda groups: [True for _ in groups]) == []


class Dies(BaseException):
    """Stands in for the death of a worker's process."""


class MortalPool(SerialPool):
    """Tells of the deaths of its workers, and makes new ones, as a pool of processes does."""

    def run(self, make_worker: Any, tasks: Sequence[Any]) -> Iterator[Outcome[Any, Any]]:
        for task in tasks:
            try:
                yield Outcome(task=task, result=make_worker()(task))
            except Dies:
                yield Outcome(task=task, error="its worker died")


def die() -> None:
    raise Dies


def deadly_sink(end: Callable[[], None]) -> Any:
    """Made inside a function, so that its class travels by value: workers do not see the tests' modules."""

    class Deadly:
        sites = ("resid_post.0",)
        columns = {"tokens-seen": "prompt"}  # noqa: RUF012

        def settings(self) -> dict[str, Any]:
            return {"sink": "deadly"}

        def start(self, unit: Unit, prompts: pa.Table) -> None:
            import numpy

            self.seen = numpy.zeros(prompts.num_rows, numpy.int32)

        def add(self, batch: SinkBatch) -> None:
            if (batch.token_id == DEADLY).any():
                end()
            for row in batch.prompt:
                self.seen[row] += 1

        def finish(self) -> list[SinkColumn]:
            return [SinkColumn(name="tokens-seen", rows="prompt", values=self.seen)]

    return Deadly()


@pytest.mark.parametrize("pool", ["in this process", pytest.param("on Ray", marks=pytest.mark.system)])
@pytest.mark.usefixtures("ray_here")
def test_a_prompt_that_kills_its_worker_is_quarantined(
    save_tiny: Callable[[str], str], tokenizer: Any, tmp_path: Path, pool: str
) -> None:
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    deadly = tokenizer.convert_ids_to_tokens(DEADLY)
    texts = [f"prompt {row}" for row in range(4)]
    texts[2] += deadly
    prompts = PromptSet.from_rows([{"prompt_id": f"p{row}", "text": text} for row, text in enumerate(texts)])
    assert [DEADLY in tokenizer(text).input_ids for text in texts] == [row == 2 for row in range(4)]
    store = Store.create(tmp_path / "run", prompts)
    model = ModelRef(save_tiny("llama"), dtype="float32").resolve()
    settings = NumericSettings(threads=1)
    workers, end = (RayPool(workers=1), kill) if pool == "on Ray" else (MortalPool(), die)
    result = harvest(model, store, None, sinks=[deadly_sink(end)], pool=workers, settings=settings)
    assert not result.complete
    assert result.errors == ()
    assert [entry["prompt_id"] for entry in result.quarantined] == ["p2"]
    assert "kills the worker" in result.quarantined[0]["reason"]
    seen = store.column(model, "tokens-seen")[:]
    assert [count > 0 for count in seen] == [row != 2 for row in range(4)]
