"""A disk that is really full: the harvest stops with exit code 2 and one line, and a rerun goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store import Store
from store.verify import verify_store
from tests.cluster.command import spawn
from tests.cluster.conftest import write_statements
from tests.harvest.conftest import save_tiny as save_tiny

pytestmark = pytest.mark.system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_stops_cleanly_and_a_rerun_goes_on(
    small_disk: Path, save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    prompts = write_statements(tmp_path / "prompts.csv", 3000)
    command = ["harvest", save_tiny("llama"), str(prompts), "--text-column", "statement", "--sites", "resid_post.*",
               "--tokens", "all", "--threads", "1", "--dtype", "float32", "--json"]  # fmt: skip
    full = spawn(*command, "--out", str(small_disk / "store"))
    output, errors = full.communicate()
    assert full.returncode == 2, errors
    assert output == ""
    (line,) = [line for line in errors.splitlines() if line.startswith("thresher:")]
    assert "disk is full" in line
    assert "run the same command again" in line
    assert "Traceback" not in errors
    if (small_disk / "store" / "prompts").exists():
        assert verify_store(Store.open(small_disk / "store")) == []
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    again = spawn(*command, "--out", str(small_disk / "store"))
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    whole = spawn(*command, "--out", str(tmp_path / "whole"))
    assert whole.wait() == 0
    assert Store.open(small_disk / "store").digest == Store.open(tmp_path / "whole").digest
