"""Models, adapters and devices that would give wrong numbers, or none, are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harvest import NumericSettings, harvest, load_model
from harvest.loading import check_sites
from harvest.recertify import recertify
from store import CaptureSpec, ModelRef, PromptSet, Store
from store.errors import InputError

SETTINGS = NumericSettings(threads=1, token_budget=64)


def test_a_checkpoint_that_lacks_a_weight_is_not_filled_up_with_random_numbers(
    save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(save_tiny("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lacking = "model.layers.1.mlp.down_proj.weight"
    save_file({name: value for name, value in weights.items() if name != lacking}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(ModelRef(str(folder)))


@pytest.mark.parametrize("kind", ["prefix", "prompt", "activated"])
def test_an_adapter_that_is_more_than_linear_layers_is_refused(
    kind: str, save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    """The base alone would be harvested under the adapter's name, or the adapter where it is not active."""
    base = transformers.AutoModelForCausalLM.from_pretrained(save_tiny("llama"))
    config = {
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "activated": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    }[kind]()
    peft.get_peft_model(base, config).save_pretrained(str(tmp_path))
    if kind == "activated":
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "alora_invocation_tokens": [5, 6]}))
    model = ModelRef(save_tiny("llama"), adapter=str(tmp_path))
    for refused in (lambda: check_sites(model.resolve(), ["resid_post.1"]), lambda: load_model(model)):
        with pytest.raises(InputError, match="can be harvested"):
            refused()


@pytest.mark.parametrize("device", ["cuda", "tpu7", "cpu:x"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_written(
    device: str, save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    store = Store.create(tmp_path / "run", PromptSet.from_rows([{"text": "Paris"}]))
    with pytest.raises(InputError, match="no device"):
        harvest(ModelRef(save_tiny("llama")), store, CaptureSpec(sites="resid_post.1"), device=device)
    assert not store.captures


def role_store(folder: Path, *, systems: bool) -> Store:
    chats = [[{"role": "user", "content": "two plus two"}] for _ in range(6)]
    if systems:
        for chat in chats[::3]:
            chat.insert(0, {"role": "system", "content": "four"})
    return Store.create(folder, PromptSet.from_rows([{"messages": chat} for chat in chats]))


def test_prompts_without_kept_tokens_are_not_sampled_for_the_certificate(
    save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    model = ModelRef(save_tiny("llama"), dtype="float32").resolve()
    spec = CaptureSpec(sites="resid_post.1", tokens="role:system")
    store = role_store(tmp_path / "some", systems=True)
    certificate = harvest(model, store, spec, settings=SETTINGS).certificate
    assert certificate.ok
    assert len(certificate.prompts) == 2
    assert all(made.ok for _, made in recertify(store, model, seed=3))
    store = role_store(tmp_path / "none", systems=False)
    certificate = harvest(model, store, spec, settings=SETTINGS).certificate
    assert not certificate.ok
    assert "row in the store" in certificate.left_out


def test_the_certificates_sample_is_not_always_the_first_prompt_of_a_unit(
    save_tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.unit.PROMPTS_PER_UNIT", 8)
    rows = [{"prompt_id": str(row), "text": f"Paris {row}"} for row in range(64)]
    model = ModelRef(save_tiny("llama"), dtype="float32").resolve()
    store = Store.create(tmp_path / "run", PromptSet.from_rows(rows))
    spec = CaptureSpec(sites="resid_post.1")
    certificate = harvest(model, store, spec, settings=SETTINGS, certificate_prompts=8).certificate
    assert certificate.ok
    places = np.array([int(name) % 8 for name in certificate.prompts])
    assert len(certificate.prompts) == 8
    assert len(set(places.tolist())) > 2
    again = Store.create(tmp_path / "again", PromptSet.from_rows(rows))
    assert harvest(model, again, spec, settings=SETTINGS, certificate_prompts=8).certificate == certificate
