"""Missing units given to the workers of a pool, and what is done about units whose workers die."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harvest.bisection import find_culprits
from harvest.watching import Watch
from harvest.worker import Job, TrialTask, UnitResult, UnitTask, Worker
from store import Capture, Pool, Store, Unit
from store.errors import InputError

Missing = tuple[Unit, tuple[Capture, ...]]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running harvest is. Prompts and tokens of this run; `total` prompts are to be run."""

    prompts: int
    total: int
    tokens: int


def run_units(
    store: Store,
    job: Job,
    missing: Sequence[Missing],
    pool: Pool,
    progress: Callable[[Progress], None] | None,
) -> tuple[list[str], int]:
    """Runs and publishes units. Gives what kept units from being computed, and the tokens read.

    Where a unit's workers die again and again, the prompts that kill them alone are looked for, and the unit is run
    once more with those quarantined. Raises InputError where a worker refuses its prompts.
    """
    make = functools.partial(Worker, job)
    size = units_per_task(len(missing), pool.workers)
    total = sum(len(unit) for unit, _ in missing)

    def tell(prompts: int, read: int) -> None:
        if progress is not None:
            progress(Progress(prompts=prompts, total=total, tokens=read))

    told = None if progress is None else tell
    watch = Watch(store, job.model.id, missing, at_once=size * pool.workers, tell=told)
    tokens = 0
    errors: dict[str, str] = {}

    def run(tasks: Sequence[UnitTask]) -> list[Missing]:
        """The units of tasks whose workers died, and that nobody published."""
        nonlocal tokens
        failed: list[Missing] = []
        for outcome in pool.run(make, tasks):
            result: UnitResult | None = outcome.result
            if result is None:
                failed += outcome.task.units
                errors.update({unit.name: f"unit {unit.name}: {outcome.error}" for unit, _ in outcome.task.units})
                continue
            if result.refused:
                raise InputError(result.refused)
            tokens += result.tokens
            watch.finished([unit for unit, _ in outcome.task.units], result.prompts, result.tokens)
        return failed

    with watch:
        failed = run([UnitTask(units=tuple(missing[start : start + size])) for start in range(0, len(missing), size)])
    again = []
    for unit, captures in failed:
        if all(store.receipt(job.model.id, unit, capture.id) is not None for capture in captures):
            continue
        culprits = _culprits(make, pool, unit, captures)
        reason = f"kills the worker that runs it ({errors[unit.name]})"
        again.append(UnitTask(units=((unit, captures),), quarantined={unit.name: dict.fromkeys(culprits, reason)}))
    if again:
        errors.clear()
        run(again)
    return list(errors.values()), tokens


def _culprits(make: Callable[[], Worker], pool: Pool, unit: Unit, captures: tuple[Capture, ...]) -> list[int]:
    def deaths(groups: Sequence[Sequence[int]]) -> list[bool]:
        tasks = [TrialTask(unit=unit, captures=captures, rows=tuple(group)) for group in groups]
        died = {outcome.task.rows: outcome.error is not None for outcome in pool.run(make, tasks)}
        return [died[task.rows] for task in tasks]

    return find_culprits(range(len(unit)), deaths)


def units_per_task(n_units: int, workers: int) -> int:
    """Units that a worker takes at a time: writing one overlaps with running the next of the same task.

    Few enough that every worker has several tasks. What is computed does not depend on it.
    """
    return max(1, min(8, n_units // (4 * workers)))
