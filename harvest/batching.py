"""Batches of one unit: sorted by length, filled up to a budget of padded tokens.

The plan depends on the unit's lengths and the budget alone, so that the same batches, and with them the same bits,
come out wherever and however often a unit is run. A quarantined prompt keeps its place and length.
"""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of each batch. Longest first, so that what does not fit into memory shows at once; ties by row.

    A batch's rows times its longest length stay within `budget`; a prompt longer than that is alone.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
