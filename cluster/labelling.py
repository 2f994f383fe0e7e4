"""Short labels for directions, from a labeller: a callable, or a command that is run once for each direction.

A labeller reads what prompts hold, which may be anything: no shell ever sees it, and what comes back is one short
line without characters that a terminal or a page would act on.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from store import InputError, ThresherError

# The JSON record of a direction to a short text.
Labeller = Callable[[Mapping[str, Any]], str]

LONGEST = 80
LONGEST_NOTE = 300
SECONDS = 120.0  # for one direction: an answer of a language model, on a slow machine


def command_labeller(command: str) -> Labeller:
    """A labeller that runs `command` with a direction's JSON on stdin, and takes the first line that it prints.

    The command is split as a shell would, but no shell runs it. The labeller raises InputError where the command exits
    with another code than 0, or has not ended after `SECONDS`; it is then killed, with what it started.
    Raises InputError where its program is not there, so that nothing runs in vain.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"labeller {command!r} cannot be split into words ({error}): close its quotes") from error
    if not words or shutil.which(words[0]) is None:
        raise InputError(
            f"labeller {command!r}: there is no program {words[0] if words else ''!r} to run; give a command that "
            "reads a direction's JSON on stdin and prints a label"
        )

    # The reason comes behind it, and must not be lost where a note is cut.
    named = repr(command if len(command) <= LONGEST else command[: LONGEST - 1] + "…")

    def label(direction: Mapping[str, Any]) -> str:
        try:
            code, said, errors = _run(words, json.dumps(direction))
        except OSError as error:
            raise InputError(f"labeller {named} cannot be run: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise InputError(f"labeller {named} did not end within {SECONDS:g} s") from error
        if code:
            last = (errors.strip().splitlines() or ["it says nothing on stderr"])[-1]
            ended = f"exit code {code}" if code > 0 else f"signal {-code}"
            raise InputError(f"labeller {named} failed with {ended}: {last}")
        return said

    return label


def labelled(labeller: Labeller, direction: Mapping[str, Any]) -> dict[str, str | None]:
    """`label`: the first line of what the labeller says of a direction, at most 80 characters; `label_note`: why there
    is none. One of the two is None."""
    try:
        label = _line(labeller(direction), LONGEST)
        if not label:
            raise InputError("the labeller gave an empty label")
    except Exception as error:  # whatever a labeller raises: what was found in the corpus must not be lost with it
        reason = str(error) if isinstance(error, ThresherError) else f"{type(error).__name__}: {error}"
        return {"label": None, "label_note": _line(" ".join(reason.split()), LONGEST_NOTE)}
    return {"label": label, "label_note": None}


def _line(text: str, longest: int) -> str:
    """The first line with text, without control, format and other characters that show nothing; cut."""
    first = next(iter(text.strip().splitlines()), "")
    shown = "".join(character for character in " ".join(first.split()) if character.isprintable())
    return shown.strip()[:longest].rstrip()


def _run(words: list[str], given: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. A group of its own, so that nothing it started outlives it or holds its pipes."""
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, errors = process.communicate(given, timeout=SECONDS)
        except BaseException:
            with suppress(OSError):  # all of it may be gone by itself
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said, errors
