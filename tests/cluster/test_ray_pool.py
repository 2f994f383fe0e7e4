"""A real Ray on this machine: the same outcomes as the serial pool, through deaths of workers and tasks that kill."""

import os
import signal
from pathlib import Path

import pytest

from cluster import RayPool
from cluster.fingerprint import fingerprint
from cluster.ray_pool import ATTEMPTS
from store import InputError, SerialPool

pytestmark = pytest.mark.usefixtures("ray_here")


def square_maker():
    """Made inside a function, so that it travels by value: workers do not see the tests' modules."""

    def make_square():
        return lambda task: (task * task, os.getpid())

    return make_square


def test_same_results_as_the_serial_pool() -> None:
    tasks = list(range(12))
    serial = {outcome.task: outcome.result[0] for outcome in SerialPool().run(square_maker(), tasks)}
    outcomes = list(RayPool(workers=2).run(square_maker(), tasks))
    assert {outcome.task: outcome.result[0] for outcome in outcomes} == serial
    assert os.getpid() not in {outcome.result[1] for outcome in outcomes}


def test_more_workers_than_processors_start() -> None:
    outcomes = list(RayPool(workers=4).run(square_maker(), list(range(8))))
    assert sorted(outcome.result[0] for outcome in outcomes) == [n * n for n in range(8)]


def test_a_worker_that_dies_is_replaced_and_its_task_given_out_again(tmp_path: Path) -> None:
    marker = str(tmp_path / "died")

    def make_fragile():
        def work(task: int) -> int:
            if task == 3 and not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return task

        return work

    outcomes = {outcome.task: outcome for outcome in RayPool(workers=2).run(make_fragile, list(range(6)))}
    assert {task: outcome.result for task, outcome in outcomes.items()} == {task: task for task in range(6)}
    assert outcomes[3].attempts == 2


@pytest.mark.system
def test_a_task_that_kills_every_worker_is_given_up_and_the_rest_is_done() -> None:
    def make_deadly():
        def work(task: int) -> int:
            if task == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return task

        return work

    outcomes = {outcome.task: outcome for outcome in RayPool(workers=2).run(make_deadly, list(range(4)))}
    assert outcomes[0].error is not None
    assert outcomes[0].attempts == ATTEMPTS
    assert "died" in outcomes[0].error
    assert [outcomes[task].result for task in (1, 2, 3)] == [1, 2, 3]


def test_an_error_of_the_user_arrives_as_itself() -> None:
    def make_refusing():
        raise InputError("site 'resid_post.99' is out of range")

    with pytest.raises(InputError, match="out of range"):
        list(RayPool(workers=1).run(make_refusing, [1]))


def test_workers_run_the_drivers_code() -> None:
    def make_teller():
        return lambda task: fingerprint()

    (outcome,) = RayPool(workers=1).run(make_teller, [0])
    assert outcome.result == fingerprint()


def test_another_machine_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with pytest.raises(InputError, match="no token"):
        list(RayPool(workers=1, address="ray://10.0.0.1:10001").run(square_maker(), [1]))
