"""Numbers in words, and triples of them to compare."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_UP_TO_NINETEEN = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
"""
_UNITS = _UP_TO_NINETEEN.split()
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """`"three hundred and fifty-one"` for 351. Numbers 0 to 999."""
    if not 0 <= number <= 999:
        raise ValueError(f"numbers from 0 to 999 have words here, not {number}")
    hundreds, rest = divmod(number, 100)
    if hundreds and not rest:
        return f"{_UNITS[hundreds]} hundred"
    small = _UNITS[rest] if rest < 20 else _TENS[rest // 10] + (f"-{_UNITS[rest % 10]}" if rest % 10 else "")
    return f"{_UNITS[hundreds]} hundred and {small}" if hundreds else small


@dataclass(frozen=True, kw_only=True)
class Triple:
    """Three numbers at equal distance; `low` and `high` are each compared with `middle`."""

    low: int
    middle: int
    high: int


def triples(rng: np.random.Generator, *, count: int, greatest: int, nearest: int, widest: int) -> Iterator[Triple]:
    """Triples of numbers from 1 to `greatest`, `nearest` to `widest` apart, that share no number with each other.

    Number statements cannot permute their answers as cities do: the smallest number is larger than none. Within a
    triple the answer is always the middle, once true and once false, so the answer tells nothing; and as no number is
    in two triples, a triple is a group that holds everything its numbers could teach.

    Raises ValueError where `greatest` leaves too few free numbers for `count` triples.
    """
    free = np.ones(greatest + 1, dtype=bool)
    free[0] = False
    made = 0
    for _ in range(200 * count):
        if made == count:
            return
        distance = int(rng.integers(nearest, widest + 1))
        middle = int(rng.integers(distance + 1, greatest - distance + 1))
        members = [middle - distance, middle, middle + distance]
        if free[members].all():
            free[members] = False
            made += 1
            yield Triple(low=members[0], middle=middle, high=members[2])
    if made < count:
        raise ValueError(f"only {made} of {count} disjoint triples found among the numbers up to {greatest}")
