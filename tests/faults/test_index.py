"""The index never says anything else than the receipts, whatever is killed, late, doubled or interleaved.

Hypothesis chooses a history of publishing, deleting, appending, summarising and collecting garbage. After every step a
summary must equal what the receipts alone say. THRESHER_SCHEDULES sets the number of histories.

Deletes are never late here, and no two of them interleave: a receipt is deleted by its name, so a deletion that
reaches the storage after the cell was computed again takes the new receipt with it. `verify` finds that.
"""

from collections.abc import Callable
from itertools import count

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import store.summary
from store import DamageError, PromptSet, Store
from store.prompt_batches import append_prompts
from store.removal import cells_of, collect, delete_cells, garbage, withdraw_cell
from store.root import ROOT
from store.unit import CHARACTERS_PER_UNIT
from store.verify import verify_store
from tests.faults.locations import FAULTS, FaultyLocation, Killed, MemoryLocation
from tests.faults.schedules import run_schedules
from tests.faults.test_schedules import COLUMN, MODELS, opened, publish_one
from tests.store.summaries import told_by_receipts, told_by_summary

WEEK = 7 * 86400
PROMPTS = [{"prompt_id": f"p{row}", "text": "x" * (CHARACTERS_PER_UNIT - row)} for row in range(4)]
Work = Callable[[Store], None]


def publish(store: Store) -> None:
    """As a harvest does, which asks for the digest at its end."""
    for model in MODELS:
        captures = store.register([COLUMN])
        store.want(model, captures)
        for unit, _ in store.missing(model, captures):
            publish_one(store, model, unit)
    store.summary()


def publish_two(store: Store) -> None:
    for unit in store.units[:2]:
        publish_one(store, MODELS[0], unit)


def summarise(store: Store) -> None:
    store.summary()


def append(store: Store) -> None:
    append_prompts(store.location, PromptSet.from_rows(PROMPTS))


def delete_a_model(store: Store) -> None:
    if MODELS[0].id in {model for model, _ in store.wanted()}:
        delete_cells(store, model=MODELS[0].id, capture=None)


def withdraw_some(store: Store) -> None:
    for cell in cells_of(store, model=None, capture=None)[::2]:
        withdraw_cell(store, *cell)


DELETIONS: tuple[Work, ...] = (delete_a_model, withdraw_some)
OTHERS: tuple[Work, ...] = (publish, publish_two, summarise, append)


class History(RuleBasedStateMachine):
    """A store whose every process may be killed at any step, or find another one at work in between."""

    @initialize()
    def begin(self) -> None:
        self.disk = MemoryLocation()
        self.disk.create("zarr.json", ROOT)
        append_prompts(self.disk, PromptSet.from_rows(PROMPTS[:2]))
        self.late: list[FaultyLocation] = []

    def run(self, work: Work, faults: dict[int, str], meanwhile: Work) -> None:
        steps = count()

        def fault(step: str) -> str:
            kind = faults.get(next(steps), "none")
            return "crash before" if step == "delete" and kind == "late" else kind

        def other() -> None:
            meanwhile(opened(MemoryLocation(self.disk.objects, self.disk.times)))

        location = FaultyLocation(inner=self.disk, fault=fault, other=other)
        self.late.append(location)
        try:
            work(opened(location))
        except Killed:
            return
        except DamageError as error:
            # Deleted by the other one in the middle of being published: told as such, and nothing is kept.
            if "vanished" not in str(error):
                raise

    @rule(
        work=st.sampled_from(OTHERS),
        meanwhile=st.sampled_from(OTHERS + DELETIONS),
        faults=st.dictionaries(st.integers(0, 30), st.sampled_from(FAULTS), max_size=4),
    )
    def act(self, work: Work, meanwhile: Work, faults: dict[int, str]) -> None:
        self.run(work, faults, meanwhile)

    @rule(
        work=st.sampled_from(DELETIONS),
        meanwhile=st.sampled_from(OTHERS),
        faults=st.dictionaries(st.integers(0, 12), st.sampled_from(FAULTS), max_size=3),
    )
    def delete(self, work: Work, meanwhile: Work, faults: dict[int, str]) -> None:
        self.run(work, faults, meanwhile)

    @rule()
    def arrive(self) -> None:
        for location in self.late:
            location.arrive()

    @rule()
    def a_week_passes_and_garbage_is_collected(self) -> None:
        self.arrive()
        for path in self.disk.times:
            self.disk.times[path] -= 2 * WEEK
        here = opened(self.disk)
        for path in garbage(here, older_than=WEEK):
            collect(here, path)

    @invariant()
    def the_summary_says_what_receipts_say(self) -> None:
        # On a copy: looking must not change what happens next.
        copy = opened(MemoryLocation(dict(self.disk.objects), dict(self.disk.times)))
        assert told_by_summary(copy) == told_by_receipts(copy)
        assert [damage for damage in verify_store(copy) if damage.path.startswith("index/")] == []
        assert told_by_summary(copy) == told_by_receipts(copy)


def test_every_history_is_summarised_as_the_receipts_tell_it(monkeypatch) -> None:
    monkeypatch.setattr(store.summary, "FRESH_RECEIPTS", 1)
    run_schedules(History, steps=8)
