"""What is to be compared, cut into groups of tensors: the tasks that a pool runs.

A group is consecutive tensors of the base of about equal size. It is decided by the base's tensors alone, never by
the number of workers, and the threads of a task are fixed, so that whoever computes a group gets the same bits.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from analysis.weights.checkpoint import Checkpoint, open_checkpoint
from analysis.weights.lora import open_adapter
from analysis.weights.pair import natural_order, pair_up
from store.digest import digest_json
from store.errors import InputError
from store.model_ref import ModelRef

# Raised whenever the same pair would give other numbers, or other files, than before.
FORMAT = "thresher-weights-2"
GROUP_BYTES = 256 << 20  # of the base in float32: about a second of work, and a part that is worth its files


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What decides the numbers of one weight difference.

    base, tuned  the models, resolved; an adapter is the base with `adapter`
    rank         triples per matrix; full  whether LAPACK's full decomposition makes them
    threads      of torch while a group is computed
    groups       tensors of the base, group by group; an adapter is one group of its own tensors
    """

    base: ModelRef
    tuned: ModelRef
    rank: int
    full: bool
    threads: int
    groups: tuple[tuple[str, ...], ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """Of what was compared: the same pair at the same rank has the same digest."""
        return digest_json([FORMAT, self.base.digest, self.tuned.digest, self.rank])

    @property
    def identity(self) -> str:
        """Of what decides the numbers, but for the threads, of which a folder keeps those that it began with."""
        return digest_json([self.digest, self.full, self.groups])

    @property
    def tensors(self) -> int:
        return sum(len(group) for group in self.groups)

    def record(self) -> dict[str, Any]:
        """JSON from which `from_record` makes it again."""
        return {
            "format": FORMAT,
            "base": self.base.record(),
            "tuned": self.tuned.record(),
            "rank": self.rank,
            "full": self.full,
            "threads": self.threads,
            "groups": [list(group) for group in self.groups],
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Comparison":
        return Comparison(
            base=ModelRef.from_record(record["base"]),
            tuned=ModelRef.from_record(record["tuned"]),
            rank=record["rank"],
            full=record["full"],
            threads=record["threads"],
            groups=tuple(tuple(group) for group in record["groups"]),
        )


class Checkpoints:
    """Checkpoints of resolved models, each opened once in a process (a GGUF file takes many seconds). Travels empty."""

    def __init__(self) -> None:
        self._opened: dict[ModelRef, Checkpoint] = {}

    def open(self, model: ModelRef) -> Checkpoint:
        """Raises InputError where it cannot be read."""
        if model not in self._opened:
            self._opened[model] = open_checkpoint(model)
        return self._opened[model]

    def __reduce__(self) -> tuple[type["Checkpoints"], tuple[()]]:
        return Checkpoints, ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to compute: one base against each of the tuned models. `began` is when, on the monotonic clock."""

    comparisons: tuple[Comparison, ...]
    checkpoints: Checkpoints = field(repr=False, compare=False)
    began: float

    @property
    def tensors(self) -> int:
        return sum(comparison.tensors for comparison in self.comparisons)


def plan_deltas(base: ModelRef | str, tuned: Sequence[ModelRef | str], *, rank: int = 20, full: bool = False) -> Plan:
    """Opens the models and cuts the work; reads no weights and writes nothing.

    Raises InputError for models that cannot be read, are not the base's architecture, or are given twice.
    """
    if rank < 1:
        raise InputError(f"rank {rank} is too small: ask for at least 1 triple per matrix")
    began = time.monotonic()
    base = as_model(base).resolve()
    checkpoints = Checkpoints()
    opened = checkpoints.open(base)
    cut = groups_of(opened.shapes)
    threads = torch.get_num_threads()
    planned: list[Comparison] = []
    names: dict[str, str] = {}
    for name in tuned:
        model = as_model(name).resolve()
        called = model.adapter or model.name
        if model.digest in names:
            raise InputError(f"{names[model.digest]} and {called} are the same model: give it once")
        names[model.digest] = called
        if model.adapter is not None:
            if {file for file in model.files if file.role != "adapter"} != set(base.files):
                raise InputError(f"adapter {model.adapter} is to be compared on {base.name}, not on {model.name}")
            adapter = open_adapter(model)
            groups: tuple[tuple[str, ...], ...] = ((*adapter.factors, *adapter.replaced),)
        else:
            pair_up(opened, checkpoints.open(model))
            groups = cut
        planned.append(Comparison(base=base, tuned=model, rank=rank, full=full, threads=threads, groups=groups))
    return Plan(comparisons=tuple(planned), checkpoints=checkpoints, began=began)


def as_model(model: ModelRef | str) -> ModelRef:
    return ModelRef(model) if isinstance(model, str) else model


def groups_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], ...]:
    """Consecutive tensors, in the order of layers, in groups of about equal size: GROUP_BYTES, or one larger tensor."""
    names = sorted(shapes, key=natural_order)
    sizes = [4 * math.prod(shapes[name]) for name in names]
    total = max(1, sum(sizes))
    count = math.ceil(total / GROUP_BYTES)
    groups: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, size in zip(names, sizes, strict=True):
        # By where the tensor's middle lies; in integers, so that every machine cuts alike.
        groups[min(count - 1, (2 * before + size) * count // (2 * total))].append(name)
        before += size
    return tuple(tuple(group) for group in groups if group)


@dataclass(frozen=True, kw_only=True)
class GroupTask:
    """One group of those comparisons, by their place in the plan, that lack it and cut alike."""

    group: int
    tensors: tuple[str, ...]
    threads: int
    members: tuple[int, ...]


def tasks_of(comparisons: Sequence[Comparison], lacking: Sequence[Collection[int]]) -> list[GroupTask]:
    """The tasks for the groups that each comparison lacks; comparisons that share a group share its task."""
    members: dict[tuple[int, tuple[str, ...], int], list[int]] = {}
    for member, (comparison, groups) in enumerate(zip(comparisons, lacking, strict=True)):
        for group in sorted(groups):
            members.setdefault((group, comparison.groups[group], comparison.threads), []).append(member)
    return [
        GroupTask(group=group, tensors=tensors, threads=threads, members=tuple(sharing))
        for (group, tensors, threads), sharing in sorted(members.items(), key=lambda item: item[0][0])
    ]
