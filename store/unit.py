"""Units: consecutive prompts, sealed once planned, the atom of work.

A unit depends on the prompts alone: never on the model, the capture or the number of workers. It closes at
`PROMPTS_PER_UNIT` prompts or `CHARACTERS_PER_UNIT` characters, whichever comes first, so that a cell of a wide
model is worth its files and one unit's rows still fit into memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from store.digest import digest_rows

PROMPTS_PER_UNIT = 512
CHARACTERS_PER_UNIT = 128 * 1024


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows [start, stop) of the prompt set. `name` is its folder, `digest` the hash of its prompts."""

    index: int
    name: str
    digest: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def plan_units(table: pa.Table, lengths: Sequence[int], *, first_index: int = 0, first_row: int = 0) -> list[Unit]:
    """Cuts `table` into units. `lengths` are its rows' characters; the offsets place an appended batch."""
    return [
        Unit(
            index=first_index + index,
            name=f"u{first_index + index:06d}",
            digest=digest_rows(table.slice(start, stop - start)),
            start=first_row + start,
            stop=first_row + stop,
        )
        for index, (start, stop) in enumerate(_borders(lengths))
    ]


def _borders(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    start, characters = 0, 0
    for row, length in enumerate(lengths):
        if row > start and (row - start == PROMPTS_PER_UNIT or characters + length > CHARACTERS_PER_UNIT):
            yield start, row
            start, characters = row, 0
        characters += length
    if start < len(lengths):
        yield start, len(lengths)
