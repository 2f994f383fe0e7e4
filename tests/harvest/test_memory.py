"""Host memory of a harvest does not grow with its prompts."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from tests.harvest.conftest import WIDE, tiny_tokenizer

HARVEST = """
import json, sys, threading, time
from harvest import NumericSettings, harvest
from store import CaptureSpec, ModelRef, PromptSet, Store

def private():
    "Bytes of this process's own memory: pages of files that the system may drop at any time are not counted."
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024

folder, out, units = sys.argv[1], sys.argv[2], int(sys.argv[3])
prompts = PromptSet.from_rows([{"text": f"{row:07d}" + 23 * "x"} for row in range(512 * units)])
peak = 0

def watch():
    global peak
    while True:
        peak = max(peak, private())
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
harvest(
    ModelRef(folder, dtype="float32"),
    Store.create(out, prompts),
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
        command = [sys.executable, "-c", HARVEST, str(tmp_path / "model"), str(tmp_path / str(units)), str(units)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks
