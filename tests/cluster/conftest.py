"""A terminal, a tiny model on disk, and prompt files."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.command import Terminal
from tests.harvest.conftest import save_adapter as save_adapter
from tests.harvest.conftest import save_tiny as save_tiny


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="session")
def tiny(save_tiny: Callable[[str], str]) -> str:
    """Folder of a tiny Llama: four blocks, width 32, context 128."""
    return save_tiny("llama")


def write_statements(path: Path, count: int) -> Path:
    """A CSV of `count` statements with columns statement, truth and city."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["statement", "truth", "city"])
        for row in range(count):
            rows.writerow(
                [f"The city number {row % 97} is {'in' if row % 2 else 'not in'} land {row}", row % 2, row % 97]
            )
    return path


@pytest.fixture
def statements(tmp_path: Path) -> Path:
    return write_statements(tmp_path / "statements.csv", 1100)
