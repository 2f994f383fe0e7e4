"""Marks of attempts that are withdrawn: empty objects `index/withdrawn/<attempt>`, made before anything is deleted.

A reader of the index counts no row of a marked attempt. A writer that finds its own attempt marked after it created
the receipt takes the receipt back. So neither needs an order or a lock with whoever deletes.
"""

from collections.abc import Iterable

from store.location import Location

MARKS = "index/withdrawn"


def mark_of(attempt: str) -> str:
    """Path of an attempt's mark."""
    return f"{MARKS}/{attempt}"


def mark_withdrawn(location: Location, attempts: Iterable[str]) -> None:
    """Rows of these attempts count no more, nor will any that is still being written. Durable when it returns."""
    for attempt in attempts:
        location.create(mark_of(attempt), b"")
