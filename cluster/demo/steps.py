"""Running the public commands one after the other, as a user would, and not twice."""

import importlib
import io
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import typer

from cluster.console import err
from store import IncompleteError
from store.direction import write_atomically

T = TypeVar("T")
COMMANDS = ("harvest", "info", "probe", "weights", "monitor", "report")
# A finding (1) is an answer, not a failure; what is incomplete (2) or nothing to do (3) stops the story.
ANSWERS = (0, 1)


@dataclass
class Story:
    """Commands run so far, in the folder of the run.

    Commands run in this process, because a new one would load torch for each; their words are those of the
    command line, and are kept in `commands.txt` for whoever wants to type them.
    """

    folder: Path
    said: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def app(self) -> typer.Typer:
        """The public commands."""
        commands = typer.Typer()
        for name in COMMANDS:
            importlib.import_module(f"cluster.commands.{name}").register(commands)
        return commands

    def command(self, *words: str | Path, saves: str) -> Path:
        """Runs `thresher …words… --json > saves` unless `saves` is there already. Returns the path of the JSON.

        Raises IncompleteError where the command does not come to its end; errors of the command pass through.
        """
        target = self.folder / saves
        line = f"thresher {shlex.join(str(word) for word in words)} --json > {shlex.quote(str(target))}"
        self.say(line, done=target.exists())
        if target.exists():
            return target
        began = time.monotonic()
        printed = io.StringIO()
        with redirect_stdout(printed):
            code = self.app([*(str(word) for word in words), "--json"], standalone_mode=False)
        if code not in (None, *ANSWERS):
            raise IncompleteError(
                f"'{line}' stopped with exit code {code}: run 'thresher demo' again, it goes on there"
            )
        write_atomically(target, printed.getvalue().encode())
        self.seconds[saves] = round(time.monotonic() - began, 1)
        return target

    def step(self, what: str, make: Callable[[], T]) -> T:
        """Something of the demo's own between two commands, such as writing its prompts."""
        self.say(f"# {what}")
        began = time.monotonic()
        made = make()
        self.seconds[what] = round(time.monotonic() - began, 1)
        return made

    def say(self, line: str, *, done: bool = False) -> None:
        self.said.append(line)
        err.print(
            f"[dim]$[/] [bold]{line.replace('[', chr(92) + '[')}[/]" + ("  [green]done before[/]" if done else ""),
            soft_wrap=True,
        )


def write_text(path: Path, lines: Sequence[str]) -> None:
    """Lines as a text file, whole or not at all."""
    write_atomically(path, ("\n".join(lines) + "\n").encode())
