"""Weight differences computed: in memory, or on a pool into folders."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis.weights.compare import ENOUGH
from analysis.weights.delta import WeightDelta, finish_delta, load_delta
from analysis.weights.delta_folder import DeltaFolder
from analysis.weights.group_worker import GroupResult, GroupWorker, Job, RefusedError, peak_rss_bytes
from analysis.weights.parts import Part, read_part
from analysis.weights.recognise import UNRELATED
from analysis.weights.work import Comparison, GroupTask, Plan, as_model, plan_deltas, tasks_of
from store.errors import DamageError, IncompleteError, InputError
from store.model_ref import ModelRef
from store.pool import Pool, SerialPool

Advance = Callable[[int], None]  # told how many more tensors are done
Cosines = dict[int, dict[int, Sequence[float]]]  # comparison -> group -> cosines of its matrices


def weight_delta(
    base: ModelRef | str,
    tuned: ModelRef | str | None = None,
    adapter: str | None = None,
    rank: int = 20,
    *,
    full: bool = False,
    progress: Advance | None = None,
) -> WeightDelta:
    """Compares a tuned model, or an adapter, with its base, in this process.

    base, tuned  a model or its name (folder, .gguf file or hub id)
    adapter      folder or hub id of a peft LoRA adapter on `base`, in place of `tuned`
    rank         triples per matrix
    full         LAPACK's full decomposition in place of the iteration
    progress     called with the number of tensors that are done since it was called last

    Raises InputError for a pair that cannot be compared: other architectures, damaged, quantised or pickled weights,
    values that are not finite, weights that have nothing to do with each other.
    """
    if (tuned is None) == (adapter is None):
        raise InputError("give either a tuned model or --adapter, one of the two")
    if tuned is None:
        model = as_model(base)
        tuned = ModelRef(model.name, revision=model.revision, adapter=adapter)
    (delta,) = weight_deltas(base, [tuned], rank, full=full, progress=progress)
    return delta


def weight_deltas(
    base: ModelRef | str,
    tuned: Sequence[ModelRef | str],
    rank: int = 20,
    *,
    full: bool = False,
    progress: Advance | None = None,
) -> list[WeightDelta]:
    """As `weight_delta`, for several models tuned from one base, which is read once; an adapter is the base with it."""
    plan = plan_deltas(base, tuned, rank=rank, full=full)
    lacking = [range(len(comparison.groups)) for comparison in plan.comparisons]
    found: dict[int, dict[int, Part]] = {member: {} for member in range(len(plan.comparisons))}
    for task, result in _results(Job(plan=plan), lacking, {}, SerialPool(), progress):
        for member, part in result.parts.items():
            found[member][task.group] = part
    return [
        WeightDelta(
            comparison=comparison,
            parts=tuple(parts[group] for group in sorted(parts)),
            seconds=time.monotonic() - plan.began,
            peak_rss_bytes=peak_rss_bytes(),
        )
        for comparison, parts in zip(plan.comparisons, found.values(), strict=True)
    ]


def write_deltas(
    plan: Plan,
    directories: Sequence[Path | str],
    *,
    pool: Pool | None = None,
    progress: Advance | None = None,
) -> list[dict[str, Any]]:
    """Computes on a pool what the folders lack; gives the JSON of each delta.json, its seconds those of this run.

    directories  a folder for each comparison of the plan, on a disk that every worker sees
    pool         where; by default this process

    A folder that is whole is left as it is, and what is damaged in it is made anew. Raises InputError as
    `weight_delta` does, and then leaves no trace of the pair that it is about, and of the others what was published;
    IncompleteError where workers died or the disk is full, and then the same call goes on from what is there.
    """
    folders = [DeltaFolder(Path(directory)) for directory in directories]
    asked = zip(folders, plan.comparisons, strict=True)
    comparisons = tuple(folder.check(comparison) for folder, comparison in asked)
    lacking = [folder.lacking(comparison) for folder, comparison in zip(folders, comparisons, strict=True)]
    records = [None if groups else _finished(folder) for folder, groups in zip(folders, lacking, strict=True)]
    made = [folder.absent() for folder in folders]
    todo = [member for member, record in enumerate(records) if record is None]
    job = Job(
        plan=replace(plan, comparisons=comparisons), folders=tuple(str(folder.path.absolute()) for folder in folders)
    )
    peak = 0
    began: set[int] = set()  # of this very run; another folder's work is somebody's, and may be under way
    try:
        for member in todo:
            if folders[member].claim(comparisons[member]):
                began.add(member)
        known = {member: _published_cosines(folders[member], comparisons[member]) for member in todo}
        for _, result in _results(job, lacking, known, pool or SerialPool(), progress):
            peak = max(peak, result.peak_rss_bytes)
    except InputError as error:
        refused = error.members if isinstance(error, RefusedError) else ()
        for member in todo:
            folder = folders[member]
            if (member in refused and not folder.finished) or (member in began and not folder.begun):
                folder.withdraw(made[member])
        raise
    for member in todo:
        records[member] = finish_delta(
            folders[member],
            comparisons[member],
            seconds=time.monotonic() - plan.began,
            peak_rss_bytes=max(peak, peak_rss_bytes()),
        )
    return [record for record in records if record is not None]


def _results(
    job: Job, lacking: Sequence[Sequence[int]], known: Cosines, pool: Pool, progress: Advance | None
) -> Iterator[tuple[GroupTask, GroupResult]]:
    """What becomes of the lacking groups.

    Raises InputError for weights that cannot be compared, once no worker writes any more: tasks that have begun are
    waited for, and those to come are not begun. Raises IncompleteError where workers died.
    """
    tasks = tasks_of(job.plan.comparisons, lacking)
    todo = sum(len(task.tensors) * len(task.members) for task in tasks)
    if progress is not None:
        progress(job.plan.tensors - todo)
    errors: list[str] = []
    stopped: list[DeltaFolder] = []
    refused: RefusedError | None = None
    for outcome in pool.run(partial(GroupWorker, job), tasks):
        task, result = outcome.task, outcome.result
        if refused is not None:
            continue
        if result is None:
            errors.append(f"{outcome.error}")
            continue
        refused = _refusal(job, task, result, known)
        if refused is None:
            if progress is not None:
                progress(len(task.tensors) * len(task.members))
            yield task, result
        elif job.folders is None:
            break
        else:
            stopped = [DeltaFolder(Path(job.folders[member])) for member in {m for task in tasks for m in task.members}]
            for folder in stopped:
                folder.refuse()
    if refused is not None:
        for folder in stopped:
            folder.resume()
        raise refused
    if errors:
        raise IncompleteError(
            f"{len(errors)} of {len(tasks)} groups of tensors were not compared ({errors[0]}): run the same command "
            "again, it goes on from there"
        )


def _refusal(job: Job, task: GroupTask, result: GroupResult, known: Cosines) -> RefusedError | None:
    """Why the pairs cannot be compared, as far as this result tells together with those `known` so far."""
    if result.refused is not None:
        return RefusedError(result.refused, result.blamed)
    for member, cosines in result.cosines.items():
        known.setdefault(member, {})[task.group] = cosines
        if (why := _unrelated(job.plan.comparisons[member], known[member])) is not None:
            return RefusedError(why, (member,))
    return None


def _unrelated(comparison: Comparison, cosines: Mapping[int, Sequence[float]]) -> str | None:
    """What to say where the first matrices, in the order of layers, have nothing to do with those of the base."""
    first: list[float] = []
    for group in range(len(comparison.groups)):
        if group not in cosines or len(first) >= ENOUGH:
            break
        first += cosines[group]
    if len(first) < ENOUGH or max(first[:ENOUGH]) >= UNRELATED:
        return None
    return (
        f"the weights of {comparison.tuned.name} have nothing to do with those of {comparison.base.name} (cosine at "
        f"most {max(first[:ENOUGH]):.2f} in the first {ENOUGH} matrices): give the base that the model was tuned from"
    )


def _published_cosines(folder: DeltaFolder, comparison: Comparison) -> dict[int, Sequence[float]]:
    parts = (read_part(folder.location, group) for group in range(len(comparison.groups)))
    return {part.part.group: part.part.cosines for part in parts if part is not None}


def _finished(folder: DeltaFolder) -> dict[str, Any] | None:
    """What delta.json holds, where it and the files beside it are whole."""
    try:
        return load_delta(folder.path)[0]
    except (InputError, DamageError):
        return None
