"""The examples of docs/store.md, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.factory import filled_store

DOCS = Path(__file__).resolve().parents[2] / "docs" / "store.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_runs(block: str, tmp_path: Path) -> None:
    filled_store(tmp_path / "runs" / "facts", 300)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\(\d+, \d+\)", done.stdout), done.stdout
