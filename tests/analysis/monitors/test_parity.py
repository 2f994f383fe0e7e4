"""The paper's rule (Watch the Weights, arXiv 2508.00161) against a plain loop over hooks in float32."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from analysis.monitors import Calibrator, ExtremesSink, MonitorSink, Scorer, calibrate, watched
from analysis.weights import weight_delta
from harvest import harvest
from store import ModelRef, PromptSet, Store
from tests.harvest.conftest import tiny_tokenizer

LAYERS, LEFT_OUT, RANK, EPSILON = 6, 3, 20, 0.01
WORDS = ["Paris", "France", "two", "plus", "city", "What", "four", "is"]
Chat = list[dict[str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama, and one in which every matrix that writes to the residual stream changed, and q_proj too."""
    base, tuned = (tmp_path_factory.mktemp("models") / name for name in ("base", "tuned"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "q_proj.weight")):
            tensors[name] = weight + 0.1 * torch.randn_like(weight)
    tuned.mkdir()
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    (tuned / "config.json").write_text((base / "config.json").read_text())
    for folder in (base, tuned):
        tiny_tokenizer().save_pretrained(folder)
    return base, tuned


def chats(n: int, *, seed: int) -> list[Chat]:
    """One to three turns; those of one turn have no token of the assistant."""
    rng = np.random.default_rng(seed)
    return [
        [
            {"role": ("user", "assistant")[turn % 2], "content": " ".join(rng.choice(WORDS, rng.integers(1, 9)))}
            for turn in range(rng.integers(1, 4))
        ]
        for _ in range(n)
    ]


class Paper:
    """The definition, token by token, with nothing of ours."""

    def __init__(self, base: Path, tuned: Path) -> None:
        before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
        self.model: Any = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tuned)
        self.vectors: dict[str, tuple[int, np.ndarray]] = {}
        for layer in range(LAYERS - LEFT_OUT):
            for name in (f"model.layers.{layer}.self_attn.o_proj.weight", f"model.layers.{layer}.mlp.down_proj.weight"):
                left = torch.linalg.svd(after[name] - before[name])[0]
                for rank in range(RANK):
                    self.vectors[f"{name}.left.{rank}"] = (layer, left[:, rank].numpy())
        self.seen: dict[int, torch.Tensor] = {}
        for layer, block in enumerate(self.model.model.layers):
            block.register_forward_hook(
                lambda module, args, output, layer=layer: self.seen.update(
                    {layer: (output[0] if isinstance(output, tuple) else output).reshape(-1, 32)}
                )
            )

    def cosines(self, chat: Chat) -> dict[tuple[str, str], list[float]]:
        """By direction and role: the cosine of each token."""
        text, roles = "<s>", ["template"] * 3
        for message in chat:
            for part, role in ((f"<|{message['role']}|>\n", "template"), (message["content"], message["role"])):
                text, roles = text + part, roles + [role] * len(part)
            text, roles = text + "<|end|>\n", roles + ["template"] * len("<|end|>\n")
        if chat[-1]["role"] == "user":
            text, roles = text + "<|assistant|>\n", roles + ["template"] * len("<|assistant|>\n")
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        starts = np.cumsum([0, *(len(self.tokenizer.decode([token])) for token in ids)])
        assert starts[-1] == len(text)
        with torch.inference_mode():
            self.model(torch.tensor([ids]))
        of_token = [
            next((role for role in roles[start:stop] if role != "template"), "template")
            for start, stop in pairwise(starts)
        ]
        found: dict[tuple[str, str], list[float]] = {}
        rows = {layer: (x / x.norm(dim=1, keepdim=True)).numpy() for layer, x in self.seen.items()}
        for name, (layer, vector) in self.vectors.items():
            for role, cosine in zip(of_token, (rows[layer] @ vector).tolist(), strict=True):
                found.setdefault((name, role), []).append(cosine)
        return found

    def verdicts(self, clean: list[Chat], new: list[Chat]) -> list[tuple[str, str] | None]:
        """Of each new prompt: the direction and role that leave the range of the clean prompts the furthest."""
        low: dict[tuple[str, str], float] = {}
        high: dict[tuple[str, str], float] = {}
        for chat in clean:
            for key, values in self.cosines(chat).items():
                low[key] = min(low.get(key, 1.0), *values)
                high[key] = max(high.get(key, -1.0), *values)
        found: list[tuple[str, str] | None] = []
        for chat in new:
            beyond = {
                key: max(max(values) - high[key], low[key] - min(values))
                for key, values in self.cosines(chat).items()
                if key[1] != "template"
            }
            furthest = max(beyond, key=lambda key: beyond[key])
            found.append(furthest if beyond[furthest] > EPSILON else None)
        return found


def test_the_same_prompts_are_flagged_by_the_same_directions(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = models
    clean, new = chats(40, seed=1), chats(24, seed=2)
    directions = tuple(watched(list(weight_delta(str(base), str(tuned), rank=RANK).directions()), rule="minmax"))
    scorer = Scorer(directions=directions, roles=("user", "assistant"), prefix=None)
    model = ModelRef(str(tuned), dtype="float32").resolve()

    def columns(given: list[Chat], sink: Any, name: str) -> list[np.ndarray]:
        store = Store.create(str(tmp_path / name), PromptSet.from_rows([{"messages": chat} for chat in given]))
        harvest(model, store, None, sinks=[sink], certificate_prompts=0).raise_if_incomplete()
        return [np.asarray(store.column(model, column)[:]) for column in sink.columns]

    extremes, _ = columns(clean, ExtremesSink(scorer=scorer), "clean")
    groups = np.array([str(row) for row in range(len(clean))])
    monitor = calibrate(scorer, extremes, groups, calibrator=Calibrator(rule="minmax"))
    scores, fired = columns(new, MonitorSink(monitor=monitor), "new")

    flagged = scores[:, 0].astype(np.float64) > monitor.threshold
    ours = [
        (directions[channel].name, scorer.roles[role]) if flag else None
        for flag, (channel, _, role, _) in zip(flagged, fired, strict=True)
    ]
    plain = Paper(base, tuned)
    assert {direction.name for direction in directions} == plain.vectors.keys()
    wanted = plain.verdicts(clean, new)
    assert 3 < sum(verdict is not None for verdict in wanted) < 23
    assert {verdict[1] for verdict in wanted if verdict} == {"user", "assistant"}
    assert ours == wanted
    assert monitor.calibration["extremes"] == len(directions) * 4
