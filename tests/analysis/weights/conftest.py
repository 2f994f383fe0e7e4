"""Tiny checkpoints with a known difference."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks with random bfloat16 weights, embeddings tied."""
    folder = tmp_path_factory.mktemp("weights") / "base"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=208,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture
def tune(base: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Copies the base, lets `edit` change its tensors in place, and gives the new folder."""

    def tuned(edit: Edit, name: str = "tuned") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text((base / "config.json").read_text())
        tensors = load_file(base / "model.safetensors")
        edit(tensors)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
        return folder

    return tuned
