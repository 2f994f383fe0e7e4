"""Pools run tasks over workers: one in this process, or many on a cluster. One code path for both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Task, Result]):
    """What became of one task: its result, or the reason there is none after every attempt.

    An outcome with an error says nothing about what the task published: infer completion from receipts.
    """

    task: Task
    result: Result | None = None
    error: str | None = None
    attempts: int = 1


class Pool(Protocol):
    """Runs tasks. `make_worker` is called once per worker, in the worker, and returns what runs one task.

    A task may say with an attribute `attempts` how often it is given out before its workers' deaths are its outcome.
    """

    @property
    def workers(self) -> int: ...

    def run(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        """Yields an outcome per task, in any order. Raises ThresherError where no task can run at all."""


class SerialPool:
    """One worker in this process, tasks in order. Exceptions keep their traceback; nothing is retried."""

    workers = 1

    def run(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        if not tasks:
            return
        work = make_worker()
        for task in tasks:
            yield Outcome(task=task, result=work(task))
