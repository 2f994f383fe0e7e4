"""`thresher export` from outside: one JSON object, files where it says, errors as one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.store.factory import filled_store


def thresher(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cluster.app", *words], capture_output=True, text=True, check=False)


def test_export_from_the_command_line(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s", 300)
    out = tmp_path / "out"
    done = thresher("export", store.path, str(out), "--to", "numpy", "--column", "scores.m", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["out"] == str(out)
    assert not data["again"]
    (column,) = data["columns"]
    assert column == {
        "name": "scores.m",
        "folder": "scores.m",
        "rows": "prompt",
        "shape": [300, 2],
        "dtype": "float32",
        "stored_as": "float32",
    }
    assert np.array_equal(np.load(out / "scores.m" / "values.npy"), store.column(model, "scores.m")[:])
    again = thresher("export", store.path, str(out), "--to", "numpy", "--column", "scores.m")
    assert again.returncode == 0
    assert "was there already" in again.stdout
    refused = thresher("export", store.path, str(out), "--to", "hf")
    assert refused.returncode == 4
    assert refused.stderr.count("\n") == 1
    assert "holds something else" in refused.stderr
