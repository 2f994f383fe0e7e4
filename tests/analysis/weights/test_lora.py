"""The spectrum of an adapter's factors against the merged weights, by peft's own merge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from analysis.weights import weight_delta
from store.errors import InputError

CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "o_proj", "up_proj"], "r": 4, "lora_alpha": 12},
    "rank-stabilised": {"target_modules": ["down_proj"], "r": 9, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 32},
    },
    "embedding": {"target_modules": ["embed_tokens", "o_proj"], "r": 3, "lora_alpha": 3},
}


def adapted(base: Path, folder: Path, settings: dict[str, Any]) -> tuple[Path, Path]:
    """An adapter with random factors on `base`, and the model that peft merges of them, both on disk in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * (0.05 if "lora_" in name else 0.01)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


def assert_same_changes(base: Path, adapter: Path, merged: Path) -> None:
    ours = {m.name: m for m in weight_delta(str(base), adapter=str(adapter)).matrices}
    theirs = {m.name: m for m in weight_delta(str(base), str(merged)).matrices if m.frobenius > 0}
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        other = theirs[name]
        n = len(matrix.sigma)
        np.testing.assert_allclose(matrix.sigma, other.sigma[:n], rtol=1e-4)
        assert matrix.frobenius == pytest.approx(other.frobenius, rel=1e-4)
        for side in ("left", "right"):
            mine, its = getattr(matrix, side), getattr(other, side)[:, :n]
            np.testing.assert_allclose(np.sum(mine * its, axis=0), 1, atol=1e-3, err_msg=f"{name} {side}")
        assert matrix.role == other.role
        assert matrix.shape == other.shape
        assert other.significant == n


@pytest.mark.parametrize("case", CASES)
def test_factors_give_the_spectrum_of_the_merged_weights(base: Path, tmp_path: Path, case: str) -> None:
    assert_same_changes(base, *adapted(base, tmp_path, CASES[case]))


def test_rank_below_the_one_asked_for_is_named(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapted(base, tmp_path, CASES["plain"])
    for matrix in weight_delta(str(base), adapter=str(adapter), rank=20).matrices:
        assert len(matrix.sigma) == matrix.significant == 4
        assert matrix.energy == pytest.approx(1)
        assert matrix.notes == ("rank 4, below the 20 asked for",)


def test_weights_that_the_adapter_replaces_are_compared_with_the_base(base: Path, tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 4, "modules_to_save": ["o_proj"]}
    assert_same_changes(base, *adapted(base, tmp_path, settings))


def test_conv1d_of_gpt2_is_stored_the_other_way_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=16, n_embd=48, n_layer=2, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    settings = {"target_modules": ["c_attn", "c_proj"], "r": 2, "lora_alpha": 4, "fan_in_fan_out": True}
    adapter, merged = adapted(tmp_path / "gpt2", tmp_path, settings)
    assert_same_changes(tmp_path / "gpt2", adapter, merged)
    delta = weight_delta(str(tmp_path / "gpt2"), adapter=str(adapter))
    sites = {d.source["matrix"]: (d.site, d.vector.shape) for d in delta.directions()}
    assert sites["transformer.h.1.attn.c_attn.weight"] == ("attn_in.1", (48,))
    assert sites["transformer.h.1.mlp.c_proj.weight"] == ("resid_post.1", (48,))


def test_untrained_adapter_is_unchanged(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "new")
    delta = weight_delta(str(base), adapter=str(tmp_path / "new"))
    assert delta.notes[0].startswith("identical")
    assert {m.notes for m in delta.matrices} == {("unchanged",)}


def test_an_adapter_that_names_another_base_gets_a_note(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapted(base, tmp_path, CASES["plain"])
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    for named, noted in (("somebody/BASE", False), (None, False), ("somebody/other", True)):
        path.write_text(json.dumps(settings | {"base_model_name_or_path": named}))
        notes = weight_delta(str(base), adapter=str(adapter)).notes
        assert [note for note in notes if "trained on somebody/other" in note] == list(notes if noted else ())
        assert len(notes) == noted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
    ],
)
def test_kinds_that_are_more_than_two_factors_are_refused(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    adapter, _ = adapted(base, tmp_path, CASES["plain"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        weight_delta(str(base), adapter=str(adapter))


def test_adapter_of_another_base_is_refused(tmp_path: Path, base: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=16, n_embd=48, n_layer=2, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    adapter, _ = adapted(base, tmp_path, CASES["plain"])
    with pytest.raises(InputError, match="give the base that it was trained on"):
        weight_delta(str(tmp_path / "gpt2"), adapter=str(adapter))
