"""What runs on a worker of a pool: the groups of tensors that one or more comparisons with a base lack.

Several models tuned from one base are compared tensor by tensor together, and the base is read once for all of them.
"""

import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.compare import compare_pair
from analysis.weights.delta_folder import DeltaFolder
from analysis.weights.difference import CHUNK, tensor_rows
from analysis.weights.lora import adapter_deltas, open_adapter
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.pair import Pair, pair_up
from analysis.weights.parts import Part, publish_part
from analysis.weights.work import GroupTask, Plan
from store.errors import InputError

# A difference, and the cosine between the two sides of a matrix where both were read.
Found = tuple[MatrixDelta | VectorDelta, float | None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know; cheap to send. `folders` take the parts; without them parts are returned."""

    plan: Plan
    folders: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """What travels back, by comparison: cosines between base and tuned matrices, and parts that are not published.

    peak_rss_bytes  largest resident size of the worker so far
    refused         the message of an input error, which the driver raises when no worker writes any more
    blamed          the comparisons whose weights it is about
    """

    cosines: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    parts: Mapping[int, Part] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    refused: str | None = None
    blamed: tuple[int, ...] = ()


class RefusedError(InputError):
    """Weights that cannot be compared. `members`: the comparisons that can never be, by their place in the plan."""

    def __init__(self, message: str, members: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.members = members


class GroupWorker:
    """Made once per worker process; called with one task after the other."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.comparisons = job.plan.comparisons
        checkpoints = job.plan.checkpoints
        self.base = checkpoints.open(self.comparisons[0].base)
        self.tuned = {
            member: checkpoints.open(comparison.tuned)
            for member, comparison in enumerate(self.comparisons)
            if comparison.tuned.adapter is None
        }
        self.pairs = {member: pair_up(self.base, tuned) for member, tuned in self.tuned.items()}

    def __call__(self, task: GroupTask) -> GroupResult:
        """Computes a group and publishes it, unless the driver has refused the work meanwhile."""
        torch.set_num_threads(task.threads)
        folders = [DeltaFolder(Path(folder)) for folder in self.job.folders or ()]
        if folders and not all(folders[member].wanted for member in task.members):
            return GroupResult()
        try:
            parts = {member: _part(task.group, found) for member, found in self._compute(task).items()}
            for member, part in parts.items():
                self.comparisons[member].base.check_unchanged()
                self.comparisons[member].tuned.check_unchanged()
                if folders:
                    publish_part(folders[member].location, part)
        except RefusedError as error:
            return GroupResult(refused=str(error), blamed=error.members)
        except InputError as error:  # not about the weights: what was published of them is whole
            return GroupResult(refused=str(error))
        return GroupResult(
            cosines={member: part.cosines for member, part in parts.items()},
            parts={} if folders else parts,
            peak_rss_bytes=peak_rss_bytes(),
        )

    def _compute(self, task: GroupTask) -> dict[int, list[Found]]:
        found: dict[int, list[Found]] = {member: [] for member in task.members}
        whole = [member for member in task.members if member in self.tuned]
        base = KeptRows(self.base, keep=len(whole) > 1)
        for tensor in task.tensors if whole else ():
            for pairs in self._pairs_of(tensor, whole):
                for member, difference in self._differences(base, pairs):
                    found[member].append(difference)
        for member in set(task.members) - set(whole):
            comparison = self.comparisons[member]
            try:
                stream = adapter_deltas(open_adapter(comparison.tuned), self.base, rank=comparison.rank)
                found[member] += ((difference, None) for difference in stream)
            except InputError as error:
                raise RefusedError(str(error), (member,)) from error
        return found

    def _pairs_of(self, tensor: str, members: Sequence[int]) -> Iterator[dict[int, Pair]]:
        """The weights that are read from one tensor of the base (two where it ties them), each by member."""
        names: dict[str, dict[int, Pair]] = {}
        for member in members:
            for pair in self.pairs[member]:
                if pair.base_name == tensor:
                    names.setdefault(pair.name, {})[member] = pair
        yield from names.values()

    def _differences(self, base: "KeptRows", pairs: Mapping[int, Pair]) -> Iterator[tuple[int, Found]]:
        """One weight in all members. Stacked experts go one by one, so that one of the base's is kept at a time."""
        streams = {member: self._stream(base, member, pair) for member, pair in pairs.items()}
        if any(len(pair.shape) == 3 for pair in pairs.values()):
            for step in zip(*streams.values(), strict=True):
                yield from zip(streams, step, strict=True)
                base.forget()
        else:
            # To its end before the next begins: a stream that waits holds its ΔW.
            for member, stream in streams.items():
                yield from ((member, difference) for difference in stream)
            base.forget()

    def _stream(self, base: Checkpoint, member: int, pair: Pair) -> Iterator[Found]:
        comparison = self.comparisons[member]
        try:
            yield from compare_pair(base, self.tuned[member], pair, rank=comparison.rank, full=comparison.full)
        except InputError as error:
            everyone = tuple(range(len(self.comparisons)))
            raise RefusedError(str(error), (member,) if self._base_is_whole(pair.base_name) else everyone) from error

    def _base_is_whole(self, tensor: str) -> bool:
        """Whether an error is the tuned model's, and not of the base that all are compared with."""
        rows, *columns = self.base.shapes[tensor]
        step = max(1, CHUNK // math.prod(columns))
        try:
            for start in range(0, rows, step):
                tensor_rows(self.base, tensor, start, min(rows, start + step))
        except InputError:
            return False
        return True


class KeptRows:
    """A checkpoint that, with `keep`, reads each range of rows once until it is told to forget."""

    def __init__(self, checkpoint: Checkpoint, *, keep: bool) -> None:
        self._checkpoint, self._keep = checkpoint, keep
        self._kept: dict[tuple[str, int, int], torch.Tensor] = {}
        self.name, self.shapes = checkpoint.name, checkpoint.shapes

    def dtype(self, tensor: str) -> torch.dtype:
        return self._checkpoint.dtype(tensor)

    def rows(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        if not self._keep:
            return self._checkpoint.rows(tensor, start, stop)
        asked = (tensor, start, stop)
        if asked not in self._kept:
            self._kept[asked] = self._checkpoint.rows(*asked)
        return self._kept[asked]

    def forget(self) -> None:
        self._kept.clear()


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _part(group: int, found: Sequence[Found]) -> Part:
    return Part(
        group=group,
        matrices=tuple(difference for difference, _ in found if isinstance(difference, MatrixDelta)),
        vectors=tuple(difference for difference, _ in found if isinstance(difference, VectorDelta)),
        # Squares of huge weights overflow, and such a matrix says nothing about where it came from.
        cosines=tuple(
            cosine
            for difference, cosine in found
            if isinstance(difference, MatrixDelta) and cosine is not None and math.isfinite(cosine)
        ),
    )
