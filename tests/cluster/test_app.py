"""How the command line ends when it is asked to stop."""

import os
import signal

import pytest

from tests.cluster.command import Terminal


def test_a_preempted_command_says_so_and_asks_to_be_run_again(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outside(number: int, frame: object) -> None:
        raise AssertionError("the signal went past the command")

    def asked_to_stop(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            # As Ray does with a signal that comes while it waits.
            raise SystemExit(1) from None

    monkeypatch.setattr("cluster.commands.info.Store.open", asked_to_stop)
    before = signal.signal(signal.SIGTERM, outside)
    try:
        assert terminal.run("info", "somewhere") == 75
        assert terminal.stderr.splitlines() == [
            "thresher: preempted; what was published is kept, and the same command goes on from there"
        ]
        assert signal.getsignal(signal.SIGTERM) is outside
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupted_command_says_what_is_kept(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.commands.info.Store.open", interrupted)
    assert terminal.run("info", "somewhere") == 130
    assert terminal.stderr.strip().splitlines() == [
        "thresher: stopped; what was published is kept, and the same command goes on from there"
    ]


def test_an_exit_that_is_no_signal_keeps_its_code(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object, **__: object) -> None:
        raise SystemExit(7)

    monkeypatch.setattr("cluster.commands.info.Store.open", ends)
    assert terminal.run("info", "somewhere") == 7
