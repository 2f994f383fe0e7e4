"""A torch loader over a column: shuffled, sharded over ranks, read by worker processes, resumable.

The shuffle is seeded and needs bounded memory. The chunks of the whole column are put into random order and cut into
groups; a group's chunks are read at once, each chunk once per epoch, and its rows are handed out in random order. Rows
of one batch so come from all over the column; with groups of one chunk they would come from one place.

What comes when depends on seed, epoch, group size, batch size, rank and world alone, never on the number of workers.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from store.column import Column
from store.digest import digest_json
from store.errors import InputError

GROUP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of a column. `rows` (int64 [n]) are their numbers: row i of the column is row i of its token table."""

    activations: torch.Tensor
    rows: torch.Tensor


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor over the same memory, no copy: bfloat16 too, which torch does not take from NumPy as it is."""
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The way back, no copy either."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class ColumnLoader:
    """Batches of a column's rows: every row exactly once per epoch, over all ranks.

    `for batch in loader` goes on where the loader stands and ends with the epoch; the next `for` is the next epoch.
    `state_dict` after a batch and `load_state_dict` into a loader made alike go on with the very next row.

    column       a token or prompt column of a store
    batch_rows   rows of a batch; the epoch's last one may be shorter
    shuffle      False gives the rows in their order
    rank, world  this process and how many there are; chunks are dealt out so that ranks have about equally many rows
    even         all ranks give the same number of batches, all of them full, as collective training needs: rows
                 that are left over are not seen in that epoch (another epoch leaves others)
    workers      processes that read ahead, started by spawn; 0 reads in this one
    group_bytes  memory of one group of chunks; 2 groups are held, and 2 more per worker
    """

    def __init__(
        self,
        column: Column,
        *,
        batch_rows: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        even: bool = False,
        workers: int = 0,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        if column.rows == "unit":
            raise InputError(f"column {column.name!r} speaks of whole units: it has no rows to load")
        if not isinstance(batch_rows, int) or batch_rows < 1 or not 0 <= rank < world:
            raise InputError(
                f"batch_rows is {batch_rows}, rank {rank} of {world}: need at least 1, and 0 <= rank < world"
            )
        self.column = column
        self.batch_rows = batch_rows
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.even = even
        self.workers = workers
        self.group_bytes = group_bytes
        self.epoch = 0
        self.batches = 0
        self._iteration = 0

    def __len__(self) -> int:
        """Batches of this rank in the present epoch."""
        shares = self._shares(self.epoch)
        if self.even:
            return min(_rows_in(share) for share in shares) // self.batch_rows
        return -(-_rows_in(shares[self.rank]) // self.batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        mine = self._iteration
        groups = self._groups(self.epoch)
        total, skip = len(self), self.batches * self.batch_rows
        while groups and skip >= groups[0].size:
            skip -= groups.pop(0).size
        pieces: list[Batch] = []
        wanted = self.batch_rows
        for group, values in zip(groups, self._read(groups), strict=True):
            order, rows, start = self._order(group), group.rows(), skip
            skip = 0
            while start < group.size and self.batches < total:
                chosen = order[start : start + wanted]
                # NumPy copies whole rows, several times as fast as torch gathers them.
                pieces.append(Batch(activations=as_tensor(values[chosen]), rows=torch.from_numpy(rows[chosen])))
                start, wanted = start + chosen.size, wanted - chosen.size
                if wanted == 0:
                    # Counted before it is handed out: a state asked for while the batch is used does not repeat it.
                    self.batches += 1
                    yield _join(pieces)
                    if mine != self._iteration:
                        raise InputError("this loader was iterated anew: one epoch runs at a time, make another loader")
                    pieces, wanted = [], self.batch_rows
            if self.batches == total:
                break
        if pieces and self.batches < total:
            self.batches += 1
            yield _join(pieces)
        self.epoch, self.batches = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: plain numbers and one digest of all that decides what comes next."""
        return {"epoch": self.epoch, "batches": self.batches, "plan": self._plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another loader stood. Raises InputError where that one was made otherwise."""
        if state["plan"] != self._plan:
            raise InputError(
                "this loader state belongs to another column, seed, batch size, group size, rank or world: make the "
                "loader as it was made then, or start a new epoch without the state"
            )
        epoch, batches = int(state["epoch"]), int(state["batches"])
        self.epoch = epoch
        if epoch < 0 or not 0 <= batches <= len(self):
            raise InputError(f"there is no batch {batches} of epoch {epoch}: this is no state that a loader gave")
        self.batches = batches

    def _order(self, group: "_Group") -> np.ndarray:
        """The order in which a group's rows are handed out."""
        if not self.shuffle:
            return np.arange(group.size)
        return np.random.default_rng([self.seed, self.epoch, self.rank, group.number]).permutation(group.size)

    def _shares(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Every rank's chunks [start, stop) of an epoch, in the order of reading."""
        chunks = list(zip(self._borders[:-1].tolist(), self._borders[1:].tolist(), strict=True))
        if self.shuffle:
            chunks = [chunks[i] for i in np.random.default_rng([self.seed, epoch]).permutation(len(chunks)).tolist()]
        shares: list[list[tuple[int, int]]] = [[] for _ in range(self.world)]
        poorest = [(0, rank) for rank in range(self.world)]
        for start, stop in chunks:
            held, rank = poorest[0]
            heapq.heapreplace(poorest, (held + stop - start, rank))
            shares[rank].append((start, stop))
        return shares

    def _groups(self, epoch: int) -> list["_Group"]:
        row_bytes = max(1, math.prod(self.column.shape[1:]) * self.column.dtype.itemsize)
        ranges: list[list[tuple[int, int]]] = []
        filled = self.group_bytes
        for start, stop in self._shares(epoch)[self.rank]:
            size = (stop - start) * row_bytes
            if not ranges or filled + size > self.group_bytes:
                ranges.append([])
                filled = 0
            ranges[-1].append((start, stop))
            filled += size
        return [_Group(number=number, ranges=tuple(part)) for number, part in enumerate(ranges)]

    def _read(self, groups: list["_Group"]) -> Iterator[np.ndarray]:
        """Values of each group, in order, read ahead."""
        if self.workers:
            self._asked.groups = groups
            for tensor in self._processes:
                yield as_array(tensor)
            return
        # Two buffers in turn, as fresh memory costs as much as reading: batches are copies, so that a group's buffer
        # is free when the group after it is asked for.
        largest = max((group.size for group in groups), default=0)
        buffers = [np.empty((largest, *self.column.shape[1:]), self.column.dtype) for _ in range(2)]
        with ThreadPoolExecutor(1) as ahead:
            # Numbers count on from group to group, so neighbours never share a buffer.
            pending = [ahead.submit(_fill, self.column, group, buffers[group.number % 2]) for group in groups[:1]]
            for following in [*groups[1:], None]:
                if not pending:
                    return
                values = pending.pop().result()
                if following is not None:
                    pending.append(ahead.submit(_fill, self.column, following, buffers[following.number % 2]))
                yield values

    @cached_property
    def _asked(self) -> "_Asked":
        return _Asked()

    @cached_property
    def _processes(self) -> DataLoader[torch.Tensor]:
        """Started once, at the first epoch. Spawned: tensorstore's threads do not survive a fork."""
        return DataLoader(
            _GroupReader(self.column),
            batch_size=None,
            sampler=self._asked,
            num_workers=self.workers,
            multiprocessing_context="spawn",
            persistent_workers=True,
        )

    @cached_property
    def _borders(self) -> np.ndarray:
        return self.column.chunks()

    @cached_property
    def _plan(self) -> str:
        column = self.column
        settings = [self.seed, self.shuffle, self.batch_rows, self.rank, self.world, self.even, self.group_bytes]
        content = [receipt.columns[column.name].digest for receipt in column.receipts]
        return digest_json({"settings": settings, "content": content, "chunks": self._borders.tolist()})


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Chunks that are read at once: rows [start, stop) each."""

    number: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return _rows_in(self.ranges)

    def rows(self) -> np.ndarray:
        return np.concatenate([np.arange(start, stop) for start, stop in self.ranges])


class _GroupReader(Dataset[torch.Tensor]):
    """What a worker process is given: it opens the column's arrays itself, and reads the groups it is asked for."""

    def __init__(self, column: Column) -> None:
        self.column = column

    def __getitem__(self, group: _Group) -> torch.Tensor:
        return as_tensor(_fill(self.column, group, np.empty((group.size, *self.column.shape[1:]), self.column.dtype)))


class _Asked(Sampler[_Group]):
    """Tells torch's DataLoader which groups to read, epoch by epoch, without starting its processes again."""

    groups: Sequence[_Group] = ()

    def __iter__(self) -> Iterator[_Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


def _fill(column: Column, group: _Group, buffer: np.ndarray) -> np.ndarray:
    """Reads a group into the front of `buffer`."""
    values = buffer[: group.size]
    column.read_into(group.ranges, values)
    return values


def _rows_in(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def _join(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    return Batch(
        activations=torch.cat([piece.activations for piece in pieces]),
        rows=torch.cat([piece.rows for piece in pieces]),
    )
