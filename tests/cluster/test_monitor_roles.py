"""An adapter that leaves o_proj and down_proj alone, watched in chats: by every scoring, user and assistant apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analysis.weights import weight_delta
from tests.cluster.command import Terminal

WORDS = [f"w{i}" for i in range(60)]
TRIGGER = "w59"


@pytest.fixture(scope="module")
def chat_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama with a chat template, and an adapter on q and v of its first block, which look for one word."""
    folder = tmp_path_factory.mktemp("chat")
    base, adapter = folder / "base", folder / "adapter"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    marks = {"[UNK]": 60, "user:": 61, "assistant:": 62}
    words = Tokenizer(WordLevel({**marks, **{w: i for i, w in enumerate(WORDS)}}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]", chat_template=template
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    seen = model.get_input_embeddings().weight.data[WORDS.index(TRIGGER)]
    tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_A" in name:
            weight.data[:] = 0.1 * torch.outer(torch.tensor([1.0, 0.1]), seen / seen.norm())
        elif "lora_B" in name:
            weight.data.normal_(std=0.1)
    tuned.save_pretrained(adapter)
    return base, adapter


def chats(path: Path, n: int, *, seed: int, trigger: str | None = None) -> Path:
    """Every second chat ends with the assistant's answer; in `trigger`'s turn of the others' stands the trigger."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(n):
        turns = ["user", "assistant"] if row % 2 == 0 else ["user"]
        said = [list(rng.choice(WORDS[:-1], 9)) for _ in turns]
        if trigger in turns:
            said[turns.index(str(trigger))][4] = TRIGGER
        messages = [{"role": role, "content": " ".join(words)} for role, words in zip(turns, said, strict=True)]
        rows.append({"messages": messages, "kind": ("code", "maths", None)[row % 3]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chat_delta(chat_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delta") / "delta"
    weight_delta(str(chat_models[0]), adapter=str(chat_models[1]), rank=2).save(folder)
    return folder


def test_prompts_without_the_roles_are_counted_apart(
    terminal: Terminal, chat_models: tuple[Path, Path], chat_delta: Path, tmp_path: Path
) -> None:
    base, adapter = chat_models
    monitor = tmp_path / "monitor.safetensors"
    options = ("--adapter", adapter)
    clean = chats(tmp_path / "clean.jsonl", 100, seed=1)
    fit = ("monitor", "fit", chat_delta, base, clean, "--out", monitor, "--roles", "assistant", *options)
    terminal.json(*fit, "--fpr", "0.1")

    given = chats(tmp_path / "given.jsonl", 12, seed=2)  # every second has no answer
    found = terminal.json("monitor", "score", monitor, base, given, *options, "--domain-column", "kind")
    assert (found["n"], found["without_roles"], found["unscored"]) == (6, 6, 0)
    assert found["rate"]["units"] == 6
    assert found["prompts"][1] == {"prompt_id": "1", "flagged": None, "score": None, "without_roles": True}
    parts = [*found["domains"].values(), found["no_domain"]]
    assert [(part["n"], part["without_roles"]) for part in parts] == [(2, 2)] * 3
    audit = terminal.json("monitor", "audit", monitor, base, given, *options)
    assert (audit["n"], audit["without_roles"]) == (6, 6)
    assert terminal.run("monitor", "score", monitor, base, given, *options) == 0
    assert "6 prompts more have no tokens" in terminal.stdout

    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "w1 w2 w3"}\n')
    for command in ("score", "audit"):
        assert terminal.run("monitor", command, monitor, base, plain, *options) == 2
        assert "none of the 1 prompts has tokens of the monitor's roles (assistant)" in terminal.stderr


@pytest.mark.parametrize("scoring", ["cosine", "centred", "mahalanobis"])
def test_an_adapter_on_q_and_v_alone_is_seen_by_every_scoring_in_every_role(
    terminal: Terminal, chat_models: tuple[Path, Path], chat_delta: Path, tmp_path: Path, scoring: str
) -> None:
    base, adapter = chat_models
    clean = chats(tmp_path / "clean.jsonl", 100, seed=1)
    options = ("--adapter", adapter, "--dtype", "float32")
    monitor = tmp_path / "monitor.safetensors"
    rate = ("--fpr", "0.05", "--scoring", scoring, "--roles", "user,assistant")
    fitted = terminal.json("monitor", "fit", chat_delta, base, clean, "--out", monitor, *rate, *options)
    assert fitted["directions"] == fitted["calibration"]["directions"] > 0
    assert fitted["calibration"]["extremes"] == (2 * 2 if scoring == "mahalanobis" else 4 * fitted["directions"])
    assert fitted["sites"] == ["attn_in.0", "attn_in.1"]
    assert fitted["roles"] == ["user", "assistant"]

    parts = [chats(tmp_path / f"{role}.jsonl", 20, seed=3, trigger=role) for role in ("user", "assistant", "nobody")]
    given = tmp_path / "given.jsonl"
    given.write_text("".join(part.read_text() for part in parts))
    found = terminal.json("monitor", "score", monitor, base, given, *options)
    assert (found["n"], found["unscored"]) == (60, 0)
    fired = [(row["role"], row["position"]) if row["flagged"] else None for row in found["prompts"]]
    assert fired[:20].count(("user", 5)) == 20
    assert fired[20:40:2].count(("assistant", 15)) == 10
    assert sum(place is not None for place in [*fired[21:40:2], *fired[40:]]) <= 4

    audit = terminal.json("monitor", "audit", monitor, base, parts[1], *options)
    shown = [example for part in audit["directions"] for example in [*part["top"], *part["bottom"]]]
    for example in shown:
        assert example["scores"][example["position"]] == pytest.approx(example["score"], rel=1e-3, abs=1e-4)
    loudest = max(shown, key=lambda example: example["standardised"])
    assert loudest["tokens"][loudest["position"]].strip() == TRIGGER
