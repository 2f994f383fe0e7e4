"""Labellers: what becomes of what they say, and of those that fail."""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.labelling import command_labeller, labelled
from store import InputError

DIRECTION = {"direction": "layers.1.left.0", "top": [{"tokens": ["é\ud800", "‮"]}], "variance": None}


def script(text: str) -> str:
    """A command that runs some Python."""
    return shlex.join([sys.executable, "-S", "-c", text])


def test_a_command_reads_the_direction_and_its_first_line_is_the_label() -> None:
    command = script(
        "import json, sys; d = json.load(sys.stdin)\n"
        "print(d['direction'], ascii(d['top'][0]['tokens'][1])); print('two')"
    )
    found = labelled(command_labeller(command), DIRECTION)
    assert found == {"label": "layers.1.left.0 '\\u202e'", "label_note": None}


def test_no_shell_sees_a_command(tmp_path: Path) -> None:
    command = script("import sys; print(sys.argv[1:])") + f" '$HOME' ; touch {tmp_path / 'made'}"
    found = labelled(command_labeller(command), DIRECTION)
    assert found["label"] == str(["$HOME", ";", "touch", f"{tmp_path / 'made'}"])[:80]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("  a label \nand more", "a label"),
        ("\n\r\n late\r\n", "late"),
        ("\x1b[31mred\x1b[0m\x07\x00 \u202edrow\u200b", "[31mred[0m drow"),
        ("tab\there\u00a0and\u2003there", "tab here and there"),
        ("<script>[bold]é 語", "<script>[bold]é 語"),
        ("x" * 200, "x" * 80),
        ("y" * 79 + " z", "y" * 79),
    ],
)
def test_a_label_is_one_short_line_that_does_nothing(said: str, label: str) -> None:
    assert labelled(lambda direction: said, DIRECTION) == {"label": label, "label_note": None}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys; sys.exit('first\\nno \\x1b[1mkey\\n\\n')", "failed with exit code 1: no [1mkey"),
        ("raise SystemExit(7)", "failed with exit code 7: it says nothing on stderr"),
        ("import os; os.kill(os.getpid(), 9)", "failed with signal 9"),
        (f"raise SystemExit(3){' # long' * 99}", "failed with exit code 3: it says nothing"),
        ("print(' ')", "the labeller gave an empty label"),
    ],
)
def test_a_command_that_fails_gives_a_note_and_no_label(text: str, says: str) -> None:
    found = labelled(command_labeller(script(text)), DIRECTION)
    assert found["label"] is None
    assert says in str(found["label_note"])


def test_a_command_that_does_not_end_is_killed_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cluster.labelling.SECONDS", 0.5)
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    found = labelled(command_labeller(f"sh -c 'sleep 20 > {held} & sleep 20'"), DIRECTION)
    assert found["label"] is None
    assert "did not end within 0.5 s" in str(found["label_note"])
    for _ in range(100):
        try:
            assert os.read(reader, 1) == b""  # nobody holds the other end any more
            break
        except BlockingIOError:
            time.sleep(0.05)
    else:
        pytest.fail("a child of the command outlived it")
    os.close(reader)


@pytest.mark.parametrize("error", [KeyError("top"), InputError("no budget left\nfor this"), RuntimeError("\x1b[2J")])
def test_a_callable_that_raises_gives_a_note(error: Exception) -> None:
    def labeller(direction: Mapping[str, Any]) -> str:
        raise error

    found = labelled(labeller, DIRECTION)
    note = {KeyError: "KeyError: 'top'", InputError: "no budget left for this", RuntimeError: "RuntimeError: [2J"}
    assert found == {"label": None, "label_note": note[type(error)]}
    none: Any = lambda direction: None  # noqa: E731
    assert "NoneType" in str(labelled(none, DIRECTION)["label_note"])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("no-such-labeller --fast", "there is no program 'no-such-labeller'"),
        ("", "there is no program ''"),
        ("sh -c 'echo", "close its quotes"),
        (__file__, "there is no program"),  # it is there, and may not be run
    ],
)
def test_a_command_that_cannot_be_run_is_refused_before_anything_runs(command: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        command_labeller(command)
