"""Every site of every architecture, however we run it, against plain transformers hooks on single prompts.

The table below says where a site is in the words of the architecture's own source; it is written by hand and knows
nothing of ours.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from harvest.architecture import find_decoder
from harvest.encoding import EncodedPrompt
from harvest.loading import LoadedModel, load_model
from harvest.raw_sink import RawSink
from harvest.reader import Reader
from harvest.unit_run import UnitRun
from harvest.ways import ways_of
from store import InputError, ModelRef, Unit

LAYER = 1
BLOCK = "model.layers.1"
LLAMA = {
    "resid_mid": f"{BLOCK}.post_attention_layernorm@in",
    "attn_in": f"{BLOCK}.input_layernorm",
    "attn_out": f"{BLOCK}.self_attn",
    "mlp_in": f"{BLOCK}.post_attention_layernorm",
    "mlp_out": f"{BLOCK}.mlp",
    "heads": f"{BLOCK}.self_attn.o_proj@in",
    "neurons": f"{BLOCK}.mlp.down_proj@in",
}
MOE = {key: path for key, path in LLAMA.items() if key != "neurons"} | {"router": f"{BLOCK}.mlp.gate"}
GEMMA = LLAMA | {
    "resid_mid": f"{BLOCK}.pre_feedforward_layernorm@in",
    "mlp_in": f"{BLOCK}.pre_feedforward_layernorm",
}
NEOX = {
    "attn_in": "gpt_neox.layers.1.input_layernorm",
    "attn_out": "gpt_neox.layers.1.attention",
    "mlp_in": "gpt_neox.layers.1.post_attention_layernorm",
    "mlp_out": "gpt_neox.layers.1.mlp",
    "heads": "gpt_neox.layers.1.attention.dense@in",
    "neurons": "gpt_neox.layers.1.mlp.dense_4h_to_h@in",
}
WHERE: dict[str, dict[str, str]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gpt2": {
        "resid_mid": "transformer.h.1.ln_2@in",
        "attn_in": "transformer.h.1.ln_1",
        "attn_out": "transformer.h.1.attn",
        "mlp_in": "transformer.h.1.ln_2",
        "mlp_out": "transformer.h.1.mlp",
        "heads": "transformer.h.1.attn.c_proj@in",
        "neurons": "transformer.h.1.mlp.c_proj@in",
    },
    "gpt_neox": NEOX,
    "gpt_neox_serial": NEOX | {"resid_mid": "gpt_neox.layers.1.post_attention_layernorm@in"},
    "phi3": LLAMA,
    "phi3_long": LLAMA,
    # Norms follow attention and MLP: both read the residual itself.
    "olmo2": LLAMA
    | {
        "resid_mid": f"{BLOCK}.mlp@in",
        "attn_in": f"{BLOCK}@in",
        "mlp_in": f"{BLOCK}.mlp@in",
    },
    "mixtral": MOE,
    "qwen3_moe": LLAMA,  # block 1 is dense
    "qwen3_moe_experts": {key: path.replace("layers.1", "layers.2") for key, path in MOE.items()},
    "peft": LLAMA,
    "multimodal": {key: path.replace("model.", "model.language_model.", 1) for key, path in GEMMA.items()},
}
LENGTHS = (9, 3, 14, 1, 9, 6, 18, 13, 12, 18)
# The last four begin with the same tokens, longer than the tiny models' sliding window.
HEADER = 11
PADDING = 1  # the tiny models' padding token, which is their end token too
# Architectures that run with padding where packing is asked: their attention is not the interface's, or caps scores.
PADDED_ONLY = {"gemma2"}
# How prompts can be run: each alone, in batches of padded tokens, by length, packed, behind a shared beginning.
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"budget": 1},
    "batched": {"budget": 10_000},
    "bucketed": {"budget": 32},
    "packed": {"budget": 10_000, "pack": True},
    "packed in several": {"budget": 32, "pack": True},
    "shared": {"budget": 48, "share_prefixes": True},
    "shared and packed": {"budget": 10_000, "share_prefixes": True, "pack": True},
}


@pytest.fixture(scope="module")
def load(save_tiny: Callable[[str], str], save_adapter: Callable[[str], str]) -> Callable[[str], LoadedModel]:
    def load(name: str) -> LoadedModel:
        architecture = {"peft": "llama", "qwen3_moe_experts": "qwen3_moe"}.get(name, name)
        adapter = save_adapter("llama") if name == "peft" else None
        return load_model(ModelRef(save_tiny(architecture), adapter=adapter, dtype="float32"))

    return load


@pytest.fixture(scope="module")
def expected_rows(load: Callable[[str], LoadedModel]) -> Callable[[str], dict[str, np.ndarray]]:
    return functools.cache(lambda name: reference(load(name), WHERE[name], layer_of(name)))


def some_prompts() -> list[EncodedPrompt]:
    """Random tokens, every third the padding token: a mask made by comparing ids would hide them."""
    random = np.random.default_rng(0)
    ids = [random.integers(0, 300, n) for n in LENGTHS]
    for tokens in ids[-4:]:
        tokens[:HEADER] = ids[-1][:HEADER]
    return [
        EncodedPrompt(
            prompt_id=str(row),
            ids=np.where(np.arange(len(tokens)) % 3 == 1, PADDING, tokens).astype(np.int32),
            role=np.ones(len(tokens), np.int8),
            response=np.zeros(len(tokens), bool),
            span=np.zeros(len(tokens), bool),
        )
        for row, tokens in enumerate(ids)
    ]


def harvested(
    loaded: LoadedModel, sites: list[str], *, budget: int = 32, tokens: str = "all", **way: Any
) -> dict[str, np.ndarray]:
    """Rows of all prompts in order, through batches, early stop and cut."""
    if way.get("pack"):
        way["pack"] = ways_of(loaded).pack
    reader = Reader(loaded, sites)
    reader.cut()
    sinks = [RawSink(sites=(site,), dtype="float32") for site in sites]
    run = UnitRun(reader, some_prompts(), sinks, tokens=tokens, budget=budget, **way)
    unit = Unit(index=0, name="u000000", digest="", start=0, stop=len(LENGTHS))
    columns = run.run(unit, pa.table({"prompt_id": [str(row) for row in range(len(LENGTHS))]})).columns
    return {site: columns[site].values for site in sites}


def watched(model: Any, paths: dict[str, str], ids: torch.Tensor, **kwargs: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """What plain hooks see in one plain forward of the whole model."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, value: Any) -> None:
        while isinstance(value, (tuple, list)):
            value = value[0]
        seen[name] = value

    hooks = []
    for name, path in paths.items():
        module = model.get_submodule(path.removesuffix("@in"))
        if path.endswith("@in"):
            hook = lambda m, args, kwargs, name=name: keep(name, args[0] if args else kwargs["hidden_states"])  # noqa: E731
            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            hooks.append(module.register_forward_hook(lambda m, args, out, name=name: keep(name, out)))
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False, **kwargs)
    for hook in hooks:
        hook.remove()
    return seen, out.hidden_states


def reference(loaded: LoadedModel, paths: dict[str, str], layer: int) -> dict[str, np.ndarray]:
    """Every prompt alone, no padding, the whole model."""
    rows: dict[str, list[np.ndarray]] = {}
    for prompt in some_prompts():
        seen, hidden = watched(loaded.model, paths, torch.from_numpy(prompt.ids).long()[None])
        seen |= {"resid_pre": hidden[layer], "resid_post": hidden[layer + 1]}
        for name, value in seen.items():
            flat = value.reshape(len(prompt), -1)
            rows.setdefault(name, []).append(flat.numpy())
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def padded_reference(loaded: LoadedModel, paths: dict[str, str], layer: int, side: str) -> dict[str, np.ndarray]:
    """All prompts in one batch of plain transformers, padded on the left or right, with explicit positions."""
    prompts, longest = some_prompts(), max(LENGTHS)
    ids = torch.full((len(prompts), longest), PADDING)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, place] = torch.from_numpy(prompt.ids).long()
        mask[row, place] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    seen, hidden = watched(loaded.model, paths, ids, attention_mask=mask, position_ids=positions)
    seen |= {"resid_pre": hidden[layer], "resid_post": hidden[layer + 1]}
    return {name: value.reshape(mask.numel(), -1)[mask.flatten().bool()].numpy() for name, value in seen.items()}


def relative_error(given: np.ndarray, expected: np.ndarray) -> float:
    flat = given.reshape(len(given), -1)
    return float((np.linalg.norm(flat - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def layer_of(name: str) -> int:
    return 2 if name == "qwen3_moe_experts" else LAYER


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WHERE)
def test_every_site_equals_a_plain_forward_of_the_single_prompt(
    name: str, way: str, load: Callable[[str], LoadedModel], expected_rows: Callable[[str], dict[str, np.ndarray]]
) -> None:
    expected = expected_rows(name)
    given = harvested(load(name), [f"{kind}.{layer_of(name)}" for kind in expected], **WAYS[way])
    for kind, rows in expected.items():
        assert relative_error(given[f"{kind}.{layer_of(name)}"], rows) < 1e-5, kind


# Not LongRoPE: there plain transformers lets the longest prompt of a batch turn the positions of all.
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [name for name in WHERE if name != "phi3_long"])
def test_plain_transformers_padded_on_either_side_gives_the_same_rows(
    name: str, side: str, load: Callable[[str], LoadedModel]
) -> None:
    layer = layer_of(name)
    expected = padded_reference(load(name), WHERE[name], layer, side)
    given = harvested(load(name), [f"{kind}.{layer}" for kind in expected], budget=10_000, pack=True)
    for kind, rows in expected.items():
        assert relative_error(given[f"{kind}.{layer}"], rows) < 1e-5, kind


@pytest.mark.parametrize("name", WHERE)
def test_what_can_be_packed_is(name: str, load: Callable[[str], LoadedModel]) -> None:
    assert ways_of(load(name)).pack == (name not in PADDED_ONLY)


@pytest.mark.parametrize("name", [name for name in WHERE if name not in PADDED_ONLY])
def test_a_module_beside_the_backbone_is_read_packed_like_all_others(
    name: str, load: Callable[[str], LoadedModel]
) -> None:
    """Otherwise a column's last bits would depend on the columns that are read with it."""
    loaded = load(name)
    head = next(label for label, _ in loaded.model.named_children() if label in ("lm_head", "embed_out"))
    alone = harvested(loaded, ["resid_post.1"], pack=True)["resid_post.1"]
    loaded = load(name)
    both = harvested(loaded, [f"module:{head}", "resid_post.1"], pack=True)
    assert np.array_equal(both["resid_post.1"], alone)
    expected = [loaded.model(torch.from_numpy(prompt.ids).long()[None]).logits[0] for prompt in some_prompts()]
    assert relative_error(both[f"module:{head}"], torch.cat(expected).numpy()) < 1e-5


@pytest.mark.parametrize("name", WHERE)
def test_last_resid_post_is_before_the_final_norm(name: str, load: Callable[[str], LoadedModel]) -> None:
    loaded = load(name)
    decoder = loaded.decoder
    norms = [child for label, child in decoder.backbone.named_children() if "norm" in label or label == "ln_f"]
    seen: list[torch.Tensor] = []
    hook = norms[-1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    for prompt in some_prompts():
        with torch.no_grad():
            loaded.model(torch.from_numpy(prompt.ids).long()[None])
    hook.remove()
    expected = torch.cat([value[0] for value in seen]).numpy()
    assert relative_error(harvested(loaded, ["resid_post.3"])["resid_post.3"], expected) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox", "phi3", "gemma2", "olmo2"])
def test_down_projection_of_the_neurons_is_the_mlp_output(name: str, load: Callable[[str], LoadedModel]) -> None:
    loaded = load(name)
    tap = loaded.decoder.tap(__import__("store").Site.parse("neurons.1"))
    given = harvested(loaded, ["neurons.1", "mlp_out.1"])
    with torch.no_grad():
        expected = tap.module(torch.from_numpy(given["neurons.1"])).numpy()
    assert relative_error(given["mlp_out.1"], expected) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox", "phi3", "mixtral"])
def test_residual_sums(name: str, load: Callable[[str], LoadedModel]) -> None:
    given = harvested(load(name), ["resid_pre.2", "attn_out.2", "mlp_out.2", "resid_post.2"])
    total = given["resid_pre.2"] + given["attn_out.2"] + given["mlp_out.2"]
    assert relative_error(given["resid_post.2"], total) < 1e-5


def test_heads_have_their_own_width_and_can_be_read_one_by_one(load: Callable[[str], LoadedModel]) -> None:
    given = harvested(load("qwen3"), ["heads.2", "heads.2.3"])
    assert given["heads.2"].shape == (sum(LENGTHS), 4, 12)
    np.testing.assert_array_equal(given["heads.2"][:, 3], given["heads.2.3"])


def test_module_paths_read_outputs_and_inputs(load: Callable[[str], LoadedModel]) -> None:
    given = harvested(
        load("llama"), ["module:model.layers.1.mlp", "mlp_out.1", "module:model.layers.1.mlp@in", "mlp_in.1"]
    )
    np.testing.assert_array_equal(given["module:model.layers.1.mlp"], given["mlp_out.1"])
    np.testing.assert_array_equal(given["module:model.layers.1.mlp@in"], given["mlp_in.1"])


def test_the_lm_head_is_read_when_it_is_asked_for(load: Callable[[str], LoadedModel]) -> None:
    loaded = load("llama")
    expected = []
    for prompt in some_prompts():
        with torch.no_grad():
            expected.append(loaded.model(torch.from_numpy(prompt.ids).long()[None]).logits[0])
    given = harvested(loaded, ["module:lm_head", "resid_post.0"])
    assert relative_error(given["module:lm_head"], torch.cat(expected).numpy()) < 1e-5


def test_only_needed_blocks_run_whatever_the_order(load: Callable[[str], LoadedModel]) -> None:
    """Neither the lm_head nor a block after the last needed one is ever called; later blocks are gone."""
    loaded = load("llama")
    called: list[str] = []
    for label, module in loaded.model.named_modules():
        module.register_forward_pre_hook(lambda m, args, label=label: called.append(label))
    reader = Reader(loaded, ["resid_post.1", "attn_in.2", "resid_pre.0"])
    called.clear()
    reader.read([np.zeros(3, int), np.zeros(2, int)], [np.arange(3), np.arange(2)])
    assert "model.layers.2" in called
    assert not {
        "lm_head",
        "model.norm",
        "model.layers.3",
        "model.layers.2.mlp",
        "model.layers.2.self_attn.q_proj",
    } & set(called)
    reader.cut()
    assert len(loaded.decoder.blocks) == 3


@pytest.mark.parametrize(
    ("name", "site", "says"),
    [
        ("gpt_neox", "resid_mid.1", "resid_pre, resid_post, attn_in"),
        ("llama", "router.1", "neurons"),
        ("mixtral", "neurons.1", "router"),
        ("llama", "heads.1.4", "from 0 to 3"),
        ("llama", "module:model.layers.1.moe", "model.layers.1 has self_attn, mlp"),
        ("llama", "module:model.layers.1.self_attn.o_proj.weight", "no module"),
        ("gemma3", "module:model.vision", "embed_tokens"),
    ],
)
def test_a_missing_place_is_named_with_what_there_is(
    name: str, site: str, says: str, load: Callable[[str], LoadedModel]
) -> None:
    with pytest.raises(InputError, match=says):
        Reader(load(name), [site])


def test_a_module_that_runs_more_than_once_is_refused(load: Callable[[str], LoadedModel]) -> None:
    loaded = load("llama")
    shared = loaded.decoder.blocks[0].mlp.act_fn
    for block in loaded.decoder.blocks:
        block.mlp.act_fn = shared
    with pytest.raises(InputError, match="reached 4 times"):
        Reader(loaded, ["module:model.layers.0.mlp.act_fn"])


def test_blocks_that_return_a_tuple_are_read_whole(load: Callable[[str], LoadedModel]) -> None:
    """Older decoder layers return a tuple; `output[0]` of a tensor would be one row of the batch."""
    plain = harvested(load("llama"), ["resid_post.1"])["resid_post.1"]
    loaded = load("llama")
    block, following = loaded.decoder.blocks[1], loaded.decoder.blocks[2]
    inner, after = block.forward, following.forward
    block.forward = lambda *args, **kwargs: (inner(*args, **kwargs), None)
    following.forward = lambda hidden, *args, **kwargs: after(hidden[0], *args, **kwargs)
    np.testing.assert_array_equal(harvested(loaded, ["resid_post.1"])["resid_post.1"], plain)


def test_an_unknown_architecture_still_offers_module_paths() -> None:
    """A model whose parts have names of their own: blocks are found, and what else there is is said."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2))  # fmt: skip
    for block in model.model.layers:
        block.strange = block.self_attn
        del block.self_attn
        block.forward = lambda hidden, block=block, **kwargs: hidden + block.mlp(hidden)
    decoder = find_decoder(model)
    loaded = LoadedModel(ref=ModelRef("x"), model=model, decoder=decoder)
    with pytest.raises(InputError, match="resid_pre, resid_mid, resid_post, mlp_in, mlp_out, neurons"):
        Reader(loaded, ["attn_out.0"])
    assert Reader(loaded, ["module:model.layers.0.mlp"]).last == "module:model.layers.0.mlp"
