"""A GGUF base against what transformers loads of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from analysis.weights import MatrixDelta
from analysis.weights.checkpoint import SafetensorsCheckpoint, open_checkpoint
from analysis.weights.compare import compare_pair
from analysis.weights.pair import pair_up
from store.model_ref import ModelRef


@pytest.mark.system
def test_gguf_tensors_equal_from_pretrained(smollm2_path: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(ModelRef(smollm2_path))
    path = Path(smollm2_path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    state = model.state_dict()
    assert set(state) - set(checkpoint.shapes) == {"lm_head.weight"}  # tied to the embedding
    for name, shape in checkpoint.shapes.items():
        assert torch.equal(checkpoint.rows(name, 0, shape[0]), state[name]), name
    middle = "model.layers.3.self_attn.q_proj.weight"  # llama.cpp reorders its rows
    assert torch.equal(checkpoint.rows(middle, 10, 20), state[middle][10:20])

    changed = "model.layers.5.mlp.down_proj.weight"
    with torch.no_grad():
        state[changed] += 0.05 * torch.outer(torch.randn(576), torch.randn(1536)) / 576**0.5
    tuned_path = str(tmp_path / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in state.items() if name != "lm_head.weight"}, tuned_path)
    tuned = SafetensorsCheckpoint("tuned", [tuned_path])
    pairs = [pair for pair in pair_up(checkpoint, tuned) if ".layers.5." in pair.name]
    found = [delta for pair in pairs for delta, _ in compare_pair(checkpoint, tuned, pair, rank=3, full=False)]
    matrices = [delta for delta in found if isinstance(delta, MatrixDelta)]
    assert len(matrices) == 7
    # everything else is the rounding of Q4_1 values to bfloat16
    assert [m.name for m in matrices if m.significant] == [changed]
