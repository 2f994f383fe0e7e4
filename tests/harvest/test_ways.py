"""How a model is run is decided by the model alone, and what a model cannot do is not done with it."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from harvest import NumericSettings, RawSink, harvest, load_model
from harvest.certificate import relative_errors
from harvest.reader import Reader
from harvest.unit_run import UnitRun
from harvest.ways import ways_of
from store import CaptureSpec, ModelRef, PromptSet, Store
from store.errors import InputError
from tests.harvest.conftest import WIDE, tiny_tokenizer

TEXTS = ["Paris is in France", "two plus two", "What city", "and where is Paris", "four", "train in France is two"]
SETTINGS = NumericSettings(threads=1, token_budget=64)


def prompts() -> PromptSet:
    return PromptSet.from_rows([{"prompt_id": f"p{row}", "text": text} for row, text in enumerate(TEXTS)])


def saved(folder: Path, config: Any) -> ModelRef:
    """A random model of `config` in float32, with a tokenizer."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelRef(str(folder), dtype="float32").resolve()


def hidden_states(model: ModelRef) -> list[tuple[torch.Tensor, ...]]:
    """Of every prompt alone, by transformers."""
    whole = transformers.AutoModelForCausalLM.from_pretrained(model.name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.name)
    with torch.no_grad():
        return [
            whole(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states for text in TEXTS
        ]


def test_a_columns_bits_do_not_depend_on_what_is_read_with_it(save_tiny: Callable[[str], str], tmp_path: Path) -> None:
    model = ModelRef(save_tiny("llama"), dtype="bfloat16").resolve()
    digests = []
    for sites in ("resid_post.1", "resid_post.1,module:lm_head,resid_post.3"):
        store = Store.create(tmp_path / str(len(digests)), prompts())
        harvest(model, store, CaptureSpec(sites=sites), settings=SETTINGS, certificate_prompts=0)
        (receipt,) = store.receipts()
        digests.append(receipt.columns["resid_post.1"].digest)
    assert digests[0] == digests[1]


def test_half_precision_that_overflows_later_does_not_change_how_an_early_site_is_run(
    save_tiny: Callable[[str], str],
) -> None:
    loaded = load_model(ModelRef(save_tiny("llama"), dtype="float16"))
    with torch.no_grad():
        loaded.decoder.blocks[1].mlp.down_proj.weight.fill_(60000.0)
    assert not ways_of(loaded).share
    assert not ways_of(loaded).pack


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Qwen3NextConfig", {"layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 8,
                             "num_experts": 4, "num_experts_per_tok": 2,
                             "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
        ("Gemma3TextConfig", {"head_dim": 8, "use_bidirectional_attention": True}),
    ],
)  # fmt: skip
def test_a_model_that_can_do_neither_is_run_padded_and_whole(name: str, options: Any, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", getattr(transformers, name)(**{**WIDE, **options}))
    ways = ways_of(load_model(model))
    assert not ways.pack
    store = Store.create(tmp_path / "run", prompts())
    harvest(model, store, CaptureSpec(sites="resid_post.2"), settings=SETTINGS, certificate_prompts=0)
    expected = torch.cat([states[3][0] for states in hidden_states(model)]).numpy()
    assert relative_errors(np.asarray(store.column(model, "resid_post.2")), expected).max() < 1e-5


def test_the_residual_between_attention_and_mlp_where_four_norms_are_in_a_block(tmp_path: Path) -> None:
    """AFMoE: `post_attention_layernorm` is on the attention's branch, `pre_mlp_layernorm` reads the residual."""
    options = {"head_dim": 8, "num_dense_layers": 4, "moe_intermediate_size": 16, "sliding_window": 64}
    model = saved(tmp_path / "model", transformers.AfmoeConfig(**{**WIDE, **options}))
    loaded = load_model(model)
    found: dict[str, torch.Tensor] = {}
    block = loaded.decoder.blocks[2]
    block.post_attention_layernorm.register_forward_hook(lambda m, a, out: found.update(attention=out))
    read = Reader(loaded, ["resid_pre.2", "resid_mid.2"]).read([np.arange(5)], [np.arange(5)])
    torch.testing.assert_close(read["resid_mid.2"], read["resid_pre.2"] + found["attention"][0])


def test_a_norm_of_the_attentions_output_is_not_taken_for_the_residual(
    save_tiny: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvest.architecture.NORM_AFTER_MLP", ())
    with pytest.raises(InputError, match=r"no place resid_mid\.1 .* norm found there"):
        Reader(load_model(ModelRef(save_tiny("olmo2"), dtype="float32")), ["resid_mid.1"])


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3"])
def test_a_module_with_heads_before_tokens_is_refused_whatever_the_number_of_heads(
    save_tiny: Callable[[str], str], architecture: str
) -> None:
    """Two key heads and two tokens look alike; rows would be heads. Qwen 3 norms before it transposes."""
    loaded = load_model(ModelRef(save_tiny(architecture), dtype="float32"))
    path = next(name for name, _ in loaded.model.named_modules() if name.endswith("layers.0.self_attn.k_norm"))
    if architecture == "gemma3":
        with pytest.raises(InputError, match="one row per token"):
            Reader(loaded, [f"module:{path}"])
    else:
        Reader(loaded, [f"module:{path}"])


def test_a_failed_batch_is_out_of_memory_before_its_halves_run(
    save_tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is being handled keeps its frames, and they the activations of the batch that did not fit."""
    plain, failed, alive = Reader.read, [], []

    def read(self: Reader, given: Any, keep: Any, **more: Any) -> Any:
        alive.append(sum(each() is not None for each in failed))
        activation = torch.zeros(8)
        if sum(map(len, given)) > 20:
            failed.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, given, keep, **more)

    monkeypatch.setattr(Reader, "read", read)
    store = Store.create(tmp_path / "run", prompts())
    result = harvest(ModelRef(save_tiny("llama"), dtype="float32"), store, CaptureSpec(sites="resid_post.1"),
                     settings=SETTINGS, certificate_prompts=0)  # fmt: skip
    assert result.complete
    assert len(failed) > 1
    assert not any(alive)


def test_a_quarantined_prompts_place_is_taken_by_one_of_its_length(
    save_tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the others' numbers are what they are in the undisturbed batch; and threads are those asked for."""
    plain, batches, threads, bad = Reader.read, [], set(), TEXTS[5].encode()
    tokens = tiny_tokenizer()(bad.decode()).input_ids

    def read(self: Reader, given: Any, keep: Any, **more: Any) -> Any:
        threads.add(torch.get_num_threads())
        if any(len(each) == len(tokens) and (each == tokens).all() for each in given) and failing:
            raise RuntimeError("cannot take it")
        batches.append([len(each) for each in given])
        return plain(self, given, keep, **more)

    monkeypatch.setattr(Reader, "read", read)
    model, spec = ModelRef(save_tiny("llama"), dtype="float32"), CaptureSpec(sites="resid_post.1")
    shapes = []
    for failing in (False, True):
        batches.clear()
        torch.set_num_threads(2)
        store = Store.create(tmp_path / str(failing), prompts())
        harvest(model, store, spec, settings=SETTINGS, certificate_prompts=0)
        shapes.append(batches[-1])
    assert shapes[0] == shapes[1]
    assert threads == {1}


def test_what_is_too_large_for_the_stored_dtype_is_counted(save_tiny: Callable[[str], str]) -> None:
    loaded = load_model(ModelRef(save_tiny("llama"), dtype="float32"))
    with torch.no_grad():
        loaded.decoder.blocks[1].mlp.down_proj.weight.fill_(60000.0)
    run = UnitRun(
        Reader(loaded, ["resid_post.1"]),
        [],
        [RawSink(sites=("resid_post.1",), dtype="float16")],
        tokens="all",
        budget=64,
    )
    run._give([], {"resid_post.1": torch.tensor([[1e6, 1.0, -1e30, float("nan")]])})
    assert int(run.nonfinite["resid_post.1"]) == 3
