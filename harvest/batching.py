"""Batches of one unit, filled up to a budget of tokens.

The plan depends on the unit's lengths and the budget alone, so that the same batches, and with them the same bits,
come out wherever and however often a unit is run. A quarantined prompt keeps its place and length.
"""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of each padded batch. Longest first, so that what does not fit into memory shows at once; ties by row.

    A batch's rows times its longest length stay within `budget`; a prompt longer than that is alone.
    """
    batches: list[list[int]] = []
    for row in _longest_first(lengths):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def plan_packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of each packed batch: as few batches as first-fit decreasing needs, of as equal a size as it gives.

    Full batches of one size matter beyond the room: small ones are slow, and matrix products are prepared anew for
    every number of tokens that they meet.
    """
    fewest = _first_fit(lengths, budget)
    step = _step(budget)
    even = -(-sum(lengths) // max(1, len(fewest)))
    for size in range(-(-even // step) * step, budget, step):
        batches = _first_fit(lengths, size)
        if len(batches) == len(fewest):
            return batches
    return fewest


def plan_endings(lengths: Sequence[int], budget: int, *, shared: int, pack: bool) -> list[list[int]]:
    """Rows of each batch of prompts of which `lengths` tokens stand behind `shared` ones that were run before."""
    if pack:
        return plan_packs(lengths, budget)
    # Every row of a padded batch holds a copy of the prefix's keys and values: they count, at a quarter.
    return plan_batches([length + shared // 4 for length in lengths], budget)


def _first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Each row, the longest first, into the first batch with room for it (Johnson 1973); one too long is alone."""
    batches: list[list[int]] = []
    room: list[int] = []
    for row in _longest_first(lengths):
        place = next((place for place, left in enumerate(room) if lengths[row] <= left), None)
        if place is None:
            batches.append([])
            room.append(size)
            place = len(batches) - 1
        batches[place].append(row)
        room[place] -= lengths[row]
    return batches


def filler(tokens: int, longest: int, budget: int) -> list[int]:
    """Lengths of dummy prompts that bring a packed batch to one of few sizes, none longer than its longest prompt."""
    missing = -tokens % _step(budget)
    return [longest] * (missing // longest) + [missing % longest] * (missing % longest > 0)


def _step(budget: int) -> int:
    return max(1, budget // 64)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
