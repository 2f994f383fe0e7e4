"""The index: what receipts say, in few files, so that nobody has to read a hundred thousand of them.

    index/<sha256>.safetensors   a segment: a row per receipt, naming the attempt that the receipt names
    index/withdrawn/<attempt>     an empty mark: the receipt of this attempt is being, or has been, withdrawn

A receipt never changes and an attempt is published once, so a row can become wrong in one way only: its receipt is
withdrawn. Whoever does that makes the mark first and deletes the receipt then. A marked row does not count, whichever
of the two came first, so writers need no order and no lock; a mark without need costs the reading of one receipt.
Segments hold nothing that receipts do not say: all of them can be deleted at any time.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from store.digest import sha256
from store.errors import ThresherError
from store.index_rows import IndexRows
from store.location import Location
from store.marks import MARKS, mark_of

SEGMENT = re.compile(r"^index/([0-9a-f]{64})\.safetensors$")


@dataclass(frozen=True, kw_only=True)
class Index:
    """What lies in `index/`: sound segments by path, and the attempts that are marked."""

    segments: Mapping[str, IndexRows]
    marked: frozenset[str]

    def rows(self) -> IndexRows:
        """The rows of all segments whose attempt is not marked; one cell may have several."""
        rows = sum(self.segments.values(), start=IndexRows.of([]))
        if not self.marked:
            return rows
        return rows.take(np.flatnonzero([attempt.decode() not in self.marked for attempt in rows.attempt.tolist()]))


def read_index(location: Location) -> Index:
    """The index as it lies there. A segment that is not what was written is left out: receipts say the same.

    Marks are listed before segments are read, and a mark is removed after the last segment with its attempt: a row read
    here without its mark had its receipt when they were listed.
    """
    paths = list(location.list("index"))
    found = {}
    for path in paths:
        if SEGMENT.match(path):
            rows = read_segment(location, path)
            if rows is not None:
                found[path] = rows
    return Index(segments=found, marked=_marked(paths))


def read_segment(location: Location, path: str) -> IndexRows | None:
    """A segment's rows; None where it is gone, or not what its name says."""
    match = SEGMENT.match(path)
    try:
        data = location.read(path)
    except FileNotFoundError:
        return None
    if match is None or sha256(data) != match[1]:
        return None
    return IndexRows.decode(data)


def marked_attempts(location: Location) -> frozenset[str]:
    return _marked(location.list(MARKS))


def replace_segments(location: Location, rows: IndexRows, old: Iterable[str]) -> None:
    """Writes one segment in place of `old` ones, whose rows `rows` holds as far as they count.

    What stands in the way (a full disk, a store that may only be read) is no concern of who reads: nothing is lost.
    """
    data = rows.encode()
    path = f"index/{sha256(data)}.safetensors"
    try:
        location.create(path, data)
        for replaced in old:
            if replaced != path:
                location.delete(replaced)
    except (ThresherError, OSError):
        return


def marks_without_use(index: Index) -> list[str]:
    """Paths of marks whose attempt is in no segment."""
    held = {attempt.decode() for rows in index.segments.values() for attempt in rows.attempt.tolist()}
    return [mark_of(attempt) for attempt in sorted(index.marked - held)]


def _marked(paths: Iterable[str]) -> frozenset[str]:
    return frozenset(path.rpartition("/")[2] for path in paths if path.startswith(f"{MARKS}/"))
