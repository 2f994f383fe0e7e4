"""The real model: GGUF file in, activations out, against a plain float32 forward of the single prompt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harvest import NumericSettings, harvest, load_model, load_tokenizer
from harvest.certificate import BOUNDS
from store import CaptureSpec, ModelRef, PromptSet, Store

TEXTS = [
    "The city of Paris is in France.",
    "Fifty-one is larger than fifty-two.",
    "Sie fragt sich, ob der Zug nach Kraków — 克拉科夫 — noch fährt.\n\n",
    "def add(a, b):\n    return a + b\n" * 6,
    "a",
]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
LAYERS = (0, 8, 29)


@pytest.fixture(scope="module")
def exact(smollm2_path: str) -> dict[str, list[np.ndarray]]:
    """Site -> rows of every prompt: the whole model, one prompt at a time, no mask, transformers' own hidden states."""
    ref = ModelRef(smollm2_path, dtype="float32").resolve()
    model, tokenizer = load_model(ref).model, load_tokenizer(ref)
    inputs = [tokenizer(text).input_ids for text in TEXTS]
    inputs.append(tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False))
    rows: dict[str, list[np.ndarray]] = {f"resid_post.{layer}": [] for layer in LAYERS}
    normed: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda module, args: normed.append(args[0]))
    for ids in inputs:
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in LAYERS[:-1]:
            rows[f"resid_post.{layer}"].append(hidden[layer + 1][0].numpy())
        rows["resid_post.29"].append(normed[-1][0].numpy())  # hidden_states[-1] is after the final norm
    return rows


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return PromptSet.from_rows(
        [{"text": text, "messages": None} for text in TEXTS] + [{"text": None, "messages": CHAT}]
    )


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_those_of_a_plain_forward_within_the_stated_bound(
    smollm2_path: str, exact: dict[str, list[np.ndarray]], prompts: PromptSet, tmp_path: Path, dtype: str, pack: bool
) -> None:
    ref = ModelRef(smollm2_path, dtype=dtype).resolve()
    store = Store.create(tmp_path / "run", prompts)
    spec = CaptureSpec(sites=tuple(exact))
    result = harvest(ref, store, spec, settings=NumericSettings(token_budget=128, pack=pack)).raise_if_incomplete()
    largest, median = BOUNDS[dtype]
    for site, rows in exact.items():
        stored = np.asarray(store.column(ref, site)).astype(np.float64)
        expected = np.concatenate(rows).astype(np.float64)
        error = np.linalg.norm(stored - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < largest, site
        assert np.median(error) < median, site
    assert result.certificate is not None
    assert result.certificate.ok


def test_the_unpacked_weights_are_the_files(smollm2_path: str) -> None:
    from gguf import GGUFReader, dequantize

    model: Any = load_model(ModelRef(smollm2_path, dtype="float32")).model
    tensors = {tensor.name: tensor for tensor in GGUFReader(smollm2_path).tensors}
    pairs = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "blk.3.ffn_down.weight": model.model.layers[3].mlp.down_proj.weight,
        "blk.29.attn_output.weight": model.model.layers[29].self_attn.o_proj.weight,
    }
    for name, weight in pairs.items():
        tensor = tensors[name]
        np.testing.assert_array_equal(weight.numpy(), dequantize(tensor.data, tensor.tensor_type))
