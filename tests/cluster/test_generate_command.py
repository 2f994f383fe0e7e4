"""`thresher generate` as a user types it."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from store import PromptSet
from tests.cluster.command import Terminal


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"text": f"The city of Paris {row % 5}"}) + "\n" for row in range(30)))
    return path


def test_responses_are_prompts_again(terminal: Terminal, tiny: str, questions: Path, tmp_path: Path) -> None:
    target = tmp_path / "responses.parquet"
    words = ("generate", tiny, questions, "--out", target, "--max-new-tokens", "6", "--temperature", "1")
    told = terminal.json(*words)
    assert told["prompts"] == 30
    table = pyarrow.parquet.read_table(target)
    assert json.loads(table.column("generation")[0].as_py())["sampling"]["temperature"] == 1.0
    again = PromptSet.read(target)
    assert again.table.column("response").to_pylist() == table.column("response").to_pylist()
    # Prompts of the same text draw from streams of their own.
    same = [text for row, text in enumerate(table.column("response").to_pylist()) if row % 5 == 0]
    assert len(set(same)) > 1
    first = target.read_bytes()
    target.unlink()
    terminal.json(*words)
    assert target.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir() if "parts" in path.name) == []


def test_another_ending_is_refused(terminal: Terminal, tiny: str, questions: Path, tmp_path: Path) -> None:
    assert terminal.run("generate", tiny, questions, "--out", tmp_path / "responses.csv") == 4
    assert ".parquet" in terminal.stderr
