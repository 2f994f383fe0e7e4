"""One peer's harvest of `resid_post.L`, timed: run by bench/harvest_speed.py with the peer's own Python.

Usage: peers.py PEER FOLDER LAYER PROMPTS.json ROUNDS, PEER one of transformers, nnsight, transformer_lens. FOLDER is a
model folder (safetensors), PROMPTS a JSON list of strings. Prints one JSON list: real tokens per second of each round.
Every peer gets batches of 16 in the order of the prompts, padded as it does by itself, and keeps the rows of real
tokens in memory until they are saved once with NumPy.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 16


def main(peer: str, folder: str, layer: int, texts: list[str], rounds: int) -> list[float]:
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    read = {"transformers": plain, "nnsight": nnsight, "transformer_lens": transformer_lens}[peer](
        folder, layer, tokenizer
    )
    read(texts[:BATCH])
    rates = []
    for _ in range(rounds):
        started, tokens = time.perf_counter(), 0
        kept = []
        for start in range(0, len(texts), BATCH):
            hidden, mask = read(texts[start : start + BATCH])
            rows = hidden[mask.bool()]
            tokens += len(rows)
            kept.append(rows.view(torch.int16).numpy())
        with tempfile.TemporaryDirectory() as place:
            np.save(Path(place) / "rows.npy", np.concatenate(kept))
        rates.append(tokens / (time.perf_counter() - started))
    return rates


def plain(folder, layer, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.no_grad()
    def read(texts):
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        return model(**inputs, output_hidden_states=True).hidden_states[layer + 1], inputs.attention_mask

    return read


def nnsight(folder, layer, tokenizer):
    from nnsight import LanguageModel

    model = LanguageModel(folder, dtype=torch.bfloat16, dispatch=True)

    @torch.no_grad()
    def read(texts):
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with model.trace(dict(inputs)) as tracer:
            saved = model.model.layers[layer].output.save()
            tracer.stop()
        return (saved if isinstance(saved, torch.Tensor) else saved[0]), inputs.attention_mask

    return read


def transformer_lens(folder, layer, tokenizer):
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, tokenizer=tokenizer, dtype=torch.bfloat16)
    name = f"blocks.{layer}.hook_out"

    @torch.no_grad()
    def read(texts):
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        _, cache = model.run_with_cache(
            inputs.input_ids, attention_mask=inputs.attention_mask, names_filter=name, stop_at_layer=layer + 1
        )
        return cache[name], inputs.attention_mask

    return read


if __name__ == "__main__":
    peer, folder, layer, prompts, rounds = sys.argv[1:]
    print(json.dumps(main(peer, folder, int(layer), json.loads(Path(prompts).read_text()), int(rounds))))
