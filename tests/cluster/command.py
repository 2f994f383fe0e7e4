"""Running the command line as a user does, in this process or as one of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.app import app, main

THRESHER = str(Path(sys.executable).parent / "thresher")


class Terminal:
    """Runs `thresher …` in this process; keeps exit code, stdout and stderr of the last run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.code = 0
        self.stdout = self.stderr = ""

    def run(self, *words: str | Path) -> int:
        self._capsys.readouterr()
        # A process registers its commands once; here each run would find, and build, those of all runs before it.
        app.registered_commands.clear()
        app.registered_groups.clear()
        self._monkeypatch.setattr(sys, "argv", ["thresher", *map(str, words)])
        try:
            main()
            self.code = 0
        except SystemExit as end:
            self.code = end.code if isinstance(end.code, int) else 0
        self.stdout, self.stderr = self._capsys.readouterr()
        return self.code

    def json(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        """Runs with --json, checks the exit code, and that stdout is one JSON object and nothing else."""
        assert self.run(*words, "--json") == code, self.stderr
        assert self.stdout.count("\n") == 1
        return dict(json.loads(self.stdout))


def spawn(*words: str | Path) -> subprocess.Popen[str]:
    """`thresher …` as a process of its own."""
    command = [THRESHER, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
