"""Which prompts of a unit kill the workers that run it: found by halving, with trials that publish nothing."""

from collections.abc import Callable, Sequence

# A trial costs a worker where it dies: more than so many prompts at once are no longer a matter of single prompts.
MOST = 8


def find_culprits(rows: Sequence[int], deaths: Callable[[Sequence[Sequence[int]]], Sequence[bool]]) -> list[int]:
    """Rows that kill alone, in order.

    `deaths` tries groups of rows and says of each whether its worker died. Nothing is taken as known: the rows' workers
    may have died over another unit of their task. Empty where no single row kills, and where more than `MOST` groups
    kill at once.
    """
    found: list[int] = []
    (died,) = deaths([rows])
    killing = [list(rows)] if died else []
    while killing:
        found += [group[0] for group in killing if len(group) == 1]
        halves = [
            half for group in killing if len(group) > 1 for half in (group[: len(group) // 2], group[len(group) // 2 :])
        ]
        killing = [half for half, died in zip(halves, deaths(halves), strict=True) if died] if halves else []
        if len(killing) > MOST:
            return []
    return sorted(found)
