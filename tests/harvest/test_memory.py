"""Host memory of a harvest does not grow with its prompts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from harvest.huge_pages import VARIABLE
from store import PromptSet, Store
from tests.harvest.conftest import WIDE, tiny_tokenizer

HARVEST = """
import json, sys, threading, time
from harvest import NumericSettings, execution, harvest
from store import CaptureSpec, ModelRef, Store

def private():
    "Bytes of this process's own memory: pages of files that the system may drop at any time are not counted."
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024

folder, out = sys.argv[1:]
# As in a long harvest: one unit in the model, one being written, one tokenised.
execution.units_per_task = lambda units, workers: 8
peak = 0

def watch():
    global peak
    while True:
        peak = max(peak, private())
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
harvest(
    ModelRef(folder, dtype="float32"),
    Store.open(out),
    CaptureSpec(sites="resid_post.0"),
    settings=NumericSettings(threads=1),
    certificate_prompts=0,
).raise_if_incomplete()
print(json.dumps(peak))
"""


def test_ten_times_the_prompts_have_the_same_peak(tmp_path: Path) -> None:
    """A unit is 8 MB of activations here: of 80 units, a tenth of the peak could hold no more than six.

    Eight units are as few as have one in the model while another is written, which is what the peak is made of.
    """
    config = transformers.LlamaConfig(**{**WIDE, "hidden_size": 128, "num_hidden_layers": 1})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    peaks = []
    for units in (8, 80):
        # Made here: rows as Python objects are larger than all else.
        rows = [{"text": f"{row:07d}" + 23 * "x"} for row in range(512 * units)]
        store = Store.create(tmp_path / str(units), PromptSet.from_rows(rows))
        command = [sys.executable, "-c", HARVEST, str(tmp_path / "model"), store.path]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks


BATCHES = """
import resource, sys
import torch
from harvest.huge_pages import use_huge_pages

if sys.argv[1] == "huge":
    use_huge_pages()
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="no huge pages here")
def test_batches_are_in_huge_pages() -> None:
    """64 MiB each time: 16,384 small pages that the kernel would have to clear."""
    # A harvest of an earlier test has set it in this process.
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    faults = {}
    for way in ("huge", "small"):
        command = [sys.executable, "-c", BATCHES, way]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        faults[way] = int(done.stdout)
    assert 10 * faults["huge"] < faults["small"] or "[always]" in ENABLED.read_text(), faults
