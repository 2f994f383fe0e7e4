"""How far running tasks are: told when one is done, and before that by the receipts of its units."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from store import Capture, Store, ThresherError, Unit
from store.cell import receipt_path

SECONDS = 3.0


class Watch:
    """Tells prompts and tokens after every task, and while it is open looks every few seconds for receipts.

    A task is several units and may take minutes, and no worker can call the driver: what is published can be seen.

    missing  units to be run, each with the captures that it lacks
    at_once  units that the workers have in hand together: so many of those not done yet are looked for
    tell     called with prompts and tokens done, from two threads and never at the same time; None looks for nothing
    """

    def __init__(
        self,
        store: Store,
        model_id: str,
        missing: Sequence[tuple[Unit, tuple[Capture, ...]]],
        *,
        at_once: int,
        tell: Callable[[int, int], None] | None,
    ) -> None:
        self._store, self._model_id, self._at_once, self._tell = store, model_id, at_once, tell
        self._prompts = self._tokens = 0
        # A worker publishes the captures of a unit in their order.
        self._running = {unit.name: (unit, captures[-1]) for unit, captures in missing}
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        if self._tell is not None:
            self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._tell is not None:
            self._looking.join()

    def finished(self, units: Sequence[Unit], prompts: int, tokens: int) -> None:
        """A task of `units` is done, and so many prompts and tokens were read."""
        with self._lock:
            for unit in units:
                self._running.pop(unit.name, None)
                self._seen.pop(unit.name, None)
            self._prompts, self._tokens = self._prompts + prompts, self._tokens + tokens
            self._say()

    def _look(self) -> None:
        while not self._closed.wait(SECONDS):
            # What cannot be read now is told when its task is done, or fails there.
            with suppress(ThresherError, OSError), self._lock:
                places = {
                    receipt_path(self._model_id, name, capture.id): (name, unit, capture)
                    for name, (unit, capture) in list(self._running.items())[: self._at_once]
                }
                published = [places[path] for path in self._store.location.present(list(places))]
                for name, unit, capture in published:
                    receipt = self._store.receipt(self._model_id, unit, capture.id)
                    self._seen[name] = (len(unit), receipt.tokens if receipt is not None else 0)
                    del self._running[name]
                if published:
                    self._say()

    def _say(self) -> None:
        if self._tell is not None:
            early = self._seen.values()
            self._tell(self._prompts + sum(n for n, _ in early), self._tokens + sum(n for _, n in early))
