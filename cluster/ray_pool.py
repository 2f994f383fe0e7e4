"""The pool on a Ray cluster: one actor per worker, each with the model loaded once.

Tasks and receipts travel; activations do not. Ray's own retries are off: an actor that died may have published,
so a task whose worker died is simply given out again, a bounded number of times, and finds its cell there.
"""

import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.fingerprint import PACKAGES, fingerprint, package_folder
from store import IncompleteError, InputError, Outcome, ThresherError
from store.pool import Result, Task

ATTEMPTS = 3
HANDSHAKE_SECONDS = 180.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Worker:
    """The actor's body: makes the worker at its first task, then runs one task at a time."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None

    def handshake(self) -> dict[str, str]:
        return fingerprint()

    def run(self, make_worker: Callable[[], Callable[[Any], Any]], task: Any) -> Any:
        if self._work is None:
            self._work = make_worker()
        return self._work(task)


@dataclass(frozen=True, kw_only=True)
class RayPool:
    """`workers` actors on a cluster.

    workers   each holds the model, and a GPU of its own where the cluster has any
    address   None starts Ray on this machine, or uses the one this process is connected to; else ray://HOST:PORT

    Raises InputError for an address outside this machine where no token guards it, and for more workers than GPUs;
    IncompleteError where no worker answers in time or a worker runs other code than the driver.
    """

    workers: int = 1
    address: str | None = None

    def run(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        if not tasks:
            return
        self._connect()
        count = min(self.workers, len(tasks))
        make = _actor_maker(count)
        actors = [make() for _ in range(count)]
        try:
            _shake_hands(actors)
            shared = ray.put(make_worker)
            yield from _schedule(actors, make, shared, deque((task, 1) for task in tasks))
        finally:
            for actor in actors:
                ray.kill(actor)

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        if self.address is not None:
            _refuse_open_cluster(self.address)
        # An empty working_dir keeps the driver's folder, and any module in it that shadows ours, off the workers'
        # path; py_modules ships exactly the code that the driver runs.
        environment = {
            "working_dir": tempfile.mkdtemp(prefix="thresher-"),
            "py_modules": [str(package_folder(package)) for package in PACKAGES],
            "excludes": ["__pycache__"],
        }
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            # RAY_ADDRESS is not followed: a cluster is named by --pool, where its token is asked for.
            address=self.address or "local",
            runtime_env=environment,
            log_to_driver=False,
            include_dashboard=None if self.address else False,
            logging_level="error",
        )
        # Ray's own handler of SIGTERM aborts the driver.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _actor_maker(workers: int) -> Callable[[], Any]:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < workers:
        raise InputError(f"{workers} workers want a GPU each and the cluster has {gpus}: ask for --workers {gpus}")
    options = {
        # A token share: threads per worker are a numeric setting, and a replacement must fit on what is left of a
        # cluster that lost a node.
        "num_cpus": 0.01,
        "num_gpus": 1 if gpus else 0,
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    actor = ray.remote(Worker).options(**options)
    return lambda: actor.remote()


def _shake_hands(actors: list[Any]) -> None:
    """Raises IncompleteError unless every actor answers in time and runs our code."""
    pending = [actor.handshake.remote() for actor in actors]
    ready, late = ray.wait(pending, num_returns=len(pending), timeout=HANDSHAKE_SECONDS)
    if late:
        raise IncompleteError(
            f"{len(late)} of {len(pending)} workers did not answer within {HANDSHAKE_SECONDS:.0f} s: ask for fewer "
            "--workers or look at the cluster with 'ray status', then run the same command again"
        )
    ours = fingerprint()
    for answer in ready:
        try:
            theirs = ray.get(answer)
        except RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise IncompleteError(f"a worker could not start ({reason}): run the same command again") from error
        for name, value in ours.items():
            if theirs[name] != value:
                raise IncompleteError(
                    f"a worker has {name} {theirs[name]} and this machine has {value}: install the same on both"
                )


def _schedule(
    actors: list[Any], make: Callable[[], Any], make_worker: Any, waiting: deque[tuple[Any, int]]
) -> Iterator[Outcome[Any, Any]]:
    """Gives each free actor a task; replaces an actor that died and gives its task out again."""
    running: dict[Any, tuple[Any, Any, int]] = {}

    def give(actor: Any) -> None:
        if waiting:
            task, attempt = waiting.popleft()
            running[actor.run.remote(make_worker, task)] = (actor, task, attempt)

    for actor in actors:
        give(actor)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, task, attempt = running.pop(done)
        try:
            result = ray.get(done)
        except RayTaskError as failure:
            cause = failure.cause
            raise (cause if isinstance(cause, ThresherError) else failure) from None
        except RayError as death:
            # The actor died, was killed for memory, or lost its node. It may have published what it was given.
            actors.remove(actor)
            if attempt < getattr(task, "attempts", ATTEMPTS):
                waiting.append((task, attempt + 1))
            else:
                reason = " ".join(str(death).split())[:300]
                yield Outcome(task=task, error=f"its worker died {attempt} times: {reason}", attempts=attempt)
            replacement = make()
            try:
                _shake_hands([replacement])
            except IncompleteError:
                # The rest of the cluster goes on without it; where nobody is left, nothing can.
                ray.kill(replacement)
                if not running:
                    raise
            else:
                actors.append(replacement)
                give(replacement)
        else:
            yield Outcome(task=task, result=result, attempts=attempt)
            give(actor)


def _refuse_open_cluster(address: str) -> None:
    host = address.removeprefix("ray://").rsplit(":", 1)[0]
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if host in LOOPBACK or os.environ.get("RAY_AUTH_TOKEN") or token.is_file():
        return
    raise InputError(
        f"the Ray cluster at {address} would run anybody's code: no token guards it here. Set RAY_AUTH_TOKEN_PATH to "
        "its token file ('ray get-auth-token' on the head node shows it)"
    )
