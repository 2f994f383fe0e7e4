"""Real processes killed with SIGKILL at random moments, on a local store and on S3; then a rerun to the end.

THRESHER_KILLS sets how many are killed in each place.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from store import Store
from store.verify import verify_store
from tests.faults.victim import MODELS, PROMPTS
from tests.store.factory import fill, model_named, prompts_of

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("THRESHER_KILLS", "25"))


def start(url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.victim", url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill_and_rerun(url: str, undisturbed: Path, *, seconds: float) -> None:
    """`seconds` is about how long an undisturbed run takes there."""
    whole = Store.create(undisturbed, prompts_of(PROMPTS))
    for name in MODELS:
        fill(whole, model_named(name))
    chance = random.Random(7)
    seen: dict[tuple[str, str], str] = {}
    killed = stores = 0
    while killed < KILLS:
        target = f"{url}/{stores}"
        stores += 1
        for _ in range(8):
            victim = start(target)
            assert victim.stdout is not None
            victim.stdout.readline()
            time.sleep(chance.uniform(0, seconds))
            victim.send_signal(signal.SIGKILL)
            finished = "done" in victim.stdout.read()
            victim.wait()
            if finished:
                break
            killed += 1
            for receipt in Store.open(target).receipts():
                cell = (target, receipt.folder.rpartition("/")[0])
                assert seen.setdefault(cell, receipt.attempt) == receipt.attempt, "a published cell was recomputed"
            if killed == KILLS:
                break
        last = start(target)
        last.wait()
        assert last.returncode == 0
        store = Store.open(target)
        assert store.complete
        assert store.digest == whole.digest
        assert verify_store(store) == []
    assert seen, "no victim had published anything: the test killed too early to show something"


def test_killed_on_a_local_disk(tmp_path: Path) -> None:
    kill_and_rerun(str(tmp_path / "killed"), tmp_path / "whole", seconds=0.3)


def test_killed_on_s3(tmp_path: Path, bucket_url: str) -> None:
    kill_and_rerun(f"{bucket_url}/killed", tmp_path / "whole", seconds=4)
