"""Exactly once, whatever happens: schedules of crashes, torn and late writes, lost answers, duplicates, two drivers.

Hypothesis chooses the schedule. After every step each visible receipt must speak of files that are whole; no
receipt may ever change; and once the storm is over, a plain rerun must reach the digest of an undisturbed run.
THRESHER_SCHEDULES sets the number of schedules (`make chaos` runs more).
"""

from itertools import count

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from store import ColumnSpec, ModelRef, PromptSet, Store, Unit
from store.cell import decode_receipt
from store.digest import sha256
from store.prompt_batches import append_prompts, read_batches
from store.removal import collect, garbage
from store.root import ROOT
from store.unit import CHARACTERS_PER_UNIT
from store.verify import verify_store
from tests.faults.locations import FAULTS, FaultyLocation, Killed, MemoryLocation
from tests.faults.schedules import run_schedules
from tests.store.factory import model_named

COLUMN = ColumnSpec(name="resid_post.1", rows="prompt", settings={"site": "resid_post.1"})
MODELS = (model_named("a"), model_named("b"))
# One long prompt fills a unit: four units of a prompt each, so that a schedule is short and still has many cells.
PROMPTS = PromptSet.from_rows([{"prompt_id": f"p{row}", "text": "x" * (CHARACTERS_PER_UNIT - row)} for row in range(4)])


def opened(location: MemoryLocation) -> Store:
    return Store(location, tuple(read_batches(location)))


def publish_one(store: Store, model: ModelRef, unit: Unit) -> None:
    (capture,) = store.register([COLUMN])
    store.want(model, [capture])
    values = np.full((1, 3), int(unit.digest[:6], 16) + int(model.digest[:6], 16), dtype=np.float32)
    tokens = pa.table(
        {
            "prompt": pa.array([0], pa.int32()),
            "position": pa.array([0], pa.int32()),
            "token_id": pa.array([unit.index], pa.int32()),
            "role": pa.array(["user"]).dictionary_encode(),
            "selected": pa.array([True]),
        }
    )
    store.publish(model, unit, capture, {COLUMN.name: values}, tokens, {"quarantined": []})


def run_through(location: MemoryLocation) -> Store:
    """A driver from its beginning to its end: creates, plans, computes what is missing."""
    location.create("zarr.json", ROOT)
    append_prompts(location, PROMPTS)
    store = opened(location)
    for model in MODELS:
        for unit, _ in store.missing(model, store.register([COLUMN])):
            publish_one(store, model, unit)
    return store


UNDISTURBED = run_through(MemoryLocation()).digest


class Storm(RuleBasedStateMachine):
    """Drivers that start, work, are killed at any step of a commit, and come back."""

    @initialize()
    def begin(self) -> None:
        self.disk = MemoryLocation()
        self.published: dict[str, bytes] = {}
        self.late: list[FaultyLocation] = []

    @rule(faults=st.dictionaries(st.integers(0, 40), st.sampled_from(FAULTS), min_size=1, max_size=4))
    def drive(self, faults: dict[int, str]) -> None:
        """A driver that meets faults at some of its steps, until it is killed or done.

        Where it is interleaved, another driver does the whole work, this one's cell included, in between.
        """
        steps = count()

        def other() -> None:
            run_through(MemoryLocation(self.disk.objects, self.disk.times))

        location = FaultyLocation(inner=self.disk, fault=lambda step: faults.get(next(steps), "none"), other=other)
        self.late.append(location)
        try:
            run_through(location)
        except Killed:
            return

    @rule()
    def arrive(self) -> None:
        """Writes of killed drivers reach the storage now."""
        for location in self.late:
            location.arrive()

    @rule()
    def collect(self) -> None:
        """Garbage collection with its grace time, while everything above goes on: nothing is old enough."""
        if self.disk.objects.get("prompts/0000.json"):
            assert garbage(opened(self.disk), older_than=3600) == []

    @invariant()
    def readers_see_whole_cells_that_never_change(self) -> None:
        for path in list(self.disk.list("receipts")):
            data = self.disk.read(path)
            assert self.published.setdefault(path, data) == data, f"{path} changed after it was published"
            receipt = decode_receipt(data, path, path)
            for name, (size, digest) in receipt.files.items():
                file = self.disk.read(f"{receipt.folder}/{name}")
                assert len(file) == size
                assert sha256(file) == digest

    def teardown(self) -> None:
        for location in self.late:
            location.arrive()
        store = run_through(self.disk)
        self.readers_see_whole_cells_that_never_change()
        assert store.complete
        assert store.digest == UNDISTURBED
        assert [capture.id for capture in store.captures] == ["0001"]
        for folder in garbage(store, older_than=0):
            collect(store, folder)
        assert verify_store(store) == []
        assert store.digest == UNDISTURBED
        cells = {"/".join(path.split("/")[:5]) for path in self.disk.list("cells") if path.count("/") > 4}
        assert len(cells) == len(MODELS) * len(store.units)


def test_every_schedule_ends_in_the_undisturbed_digest() -> None:
    run_schedules(Storm, steps=6)
