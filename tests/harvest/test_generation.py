"""Responses against transformers' own greedy decoding, and their independence of the batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from harvest import Intervention, NumericSettings, Sampling, generate, load_model, respond
from harvest.generation import _choose, _stream
from harvest.loading import LoadedModel
from harvest.reader import Reader
from store import InputError, ModelRef, PromptSet

TEXTS = ["Paris is in", "two plus two is", "a", "The city of Paris is in France. What is", "four four four"]
PROMPTS = PromptSet.from_rows([{"prompt_id": f"p{row}", "text": text, "kind": row} for row, text in enumerate(TEXTS)])
GREEDY = Sampling(max_new_tokens=12)


@pytest.fixture
def load(save_tiny: Callable[[str], str]) -> Callable[[str], LoadedModel]:
    return lambda name: load_model(ModelRef(save_tiny(name), dtype="float32"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3", "mixtral", "mistral"])
def test_greedy_is_transformers_greedy_of_the_single_prompt(
    name: str, load: Callable[[str], LoadedModel], tokenizer: Any
) -> None:
    loaded = load(name)
    answered = generate(loaded, tokenizer, PROMPTS.table, GREEDY)
    for text, response, n, finish in zip(
        TEXTS, *(answered.column(name).to_pylist() for name in ("response", "response_tokens", "finish")), strict=True
    ):
        inputs = tokenizer(text, return_tensors="pt")
        out = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=1)[0]
        new = out[inputs.input_ids.shape[1] :].tolist()
        ended = tokenizer.eos_token_id in new
        new = new[: new.index(tokenizer.eos_token_id)] if ended else new
        assert response == tokenizer.decode(new, skip_special_tokens=True)
        assert (n, finish) == (len(new), "stop" if ended else "length")


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=3)])
def test_a_response_does_not_depend_on_its_neighbours(
    load: Callable[[str], LoadedModel], tokenizer: Any, sampling: Sampling
) -> None:
    loaded = load("llama")
    together = generate(loaded, tokenizer, PROMPTS.table, sampling).to_pylist()
    turned = generate(loaded, tokenizer, PROMPTS.table.take([4, 2, 0]), sampling).to_pylist()
    alone = generate(loaded, tokenizer, PROMPTS.table, replace(sampling, token_budget=1)).to_pylist()
    assert [row["response"] for row in alone] == [row["response"] for row in together]
    assert [row["response"] for row in turned] == [together[place]["response"] for place in (4, 2, 0)]
    assert [row["kind"] for row in turned] == [4, 2, 0]


def test_seeds_differ_and_repeat(load: Callable[[str], LoadedModel], tokenizer: Any) -> None:
    loaded = load("llama")
    drawn = [
        generate(loaded, tokenizer, PROMPTS.table, Sampling(max_new_tokens=8, temperature=1.0, seed=seed))
        .column("response")
        .to_pylist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampling_follows_the_distribution() -> None:
    """Many streams' first tokens against the softmax, and against the smallest set that reaches top_p."""
    n, temperature = 4000, 2.0
    logits = torch.tensor([1.0, 3.0, -2.0, 2.5, 0.0, float("-inf")])
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    for top_p, kept in ((1.0, [0, 1, 2, 3, 4]), (0.5, [1, 3]), (0.1, [1])):
        expected = np.zeros_like(p)
        expected[kept] = p[kept] / p[kept].sum()
        streams = [_stream(0, str(row)) for row in range(n)]
        drawn = np.bincount(
            _choose(logits.expand(n, -1), Sampling(temperature=temperature, top_p=top_p), streams), minlength=len(p)
        )
        assert (drawn[expected == 0] == 0).all()
        assert (np.abs(drawn - n * expected) <= 5 * np.sqrt(n * expected * (1 - expected))).all()


def test_provenance_names_model_and_sampling(load: Callable[[str], LoadedModel], tokenizer: Any) -> None:
    import json

    loaded = load("llama")
    answered = generate(loaded, tokenizer, PROMPTS.table, GREEDY)
    record = json.loads(answered.column("generation")[0].as_py())
    assert record["digest"] == loaded.ref.digest
    assert record["sampling"]["max_new_tokens"] == 12


def test_responses_over_a_pool_are_those_of_one_batch(
    save_tiny: Callable[[str], str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.unit.PROMPTS_PER_UNIT", 2)
    ref = ModelRef(save_tiny("llama"), dtype="float32")
    sampling = Sampling(max_new_tokens=6, temperature=0.7)
    answered = dict(respond(ref, PROMPTS, sampling, settings=NumericSettings(threads=1)))
    expected = generate(load_model(ref), tokenizer, PROMPTS.table, sampling)
    texts = [text for unit in PROMPTS.units for text in answered[unit].column("response").to_pylist()]
    assert texts == expected.column("response").to_pylist()


def test_what_cannot_be_answered_is_refused(load: Callable[[str], LoadedModel], tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match="'p7' ends with an assistant's turn"):
        generate(load("llama"), tokenizer, PromptSet.from_rows([{"prompt_id": "p7", "messages": chat}]).table, GREEDY)
    full = PromptSet.from_rows([{"prompt_id": "p7", "text": "~" * 127}])
    with pytest.raises(InputError, match="'p7' fills the whole context"):
        generate(load("llama"), tokenizer, full.table, GREEDY)
    with pytest.raises(InputError, match="max_new_tokens"):
        Sampling(max_new_tokens=0)


def rows_under(loaded: LoadedModel, interventions: list[Intervention], site: str) -> torch.Tensor:
    from harvest.interventions import intervene

    with intervene(loaded, interventions):
        return Reader(loaded, [site]).read([np.arange(6), np.arange(6, 12)], [np.arange(6)] * 2)[site]


DIRECTIONS = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)


@pytest.mark.parametrize("site", ["resid_post.1", "resid_pre.1", "resid_mid.1", "attn_out.1", "mlp_in.1", "mlp_out.1"])
def test_interventions_do_their_arithmetic(load: Callable[[str], LoadedModel], site: str) -> None:
    """Read behind the site's own hook: modules run hooks in the order they were attached."""
    loaded = load("llama")
    plain = rows_under(loaded, [], site).double()
    v = torch.from_numpy(DIRECTIONS[0]).double()
    added = rows_under(loaded, [Intervention(site=site, kind="add", vectors=DIRECTIONS[0], amount=2.5)], site)
    torch.testing.assert_close(added.double(), plain + 2.5 * v, rtol=1e-5, atol=1e-5)
    unit = v / v.norm()
    held = rows_under(
        loaded, [Intervention(site=site, kind="clamp", vectors=DIRECTIONS[0], amount=-3.0)], site
    ).double()
    torch.testing.assert_close(held @ unit, torch.full((12,), -3.0, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    across = plain - (plain @ unit)[:, None] * unit
    torch.testing.assert_close(held - (held @ unit)[:, None] * unit, across, rtol=1e-5, atol=1e-5)
    span = torch.from_numpy(DIRECTIONS).double()
    # The third vector lies in the span of the others: a rank of 2.
    tied = np.stack([DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[0] - 2 * DIRECTIONS[1]])
    for vectors, rank in ((DIRECTIONS, 3), (tied, 2)):
        gone = rows_under(loaded, [Intervention(site=site, kind="ablate", vectors=vectors)], site).double()
        assert (gone @ span[:rank].T).abs().max() < 1e-3
        basis = torch.linalg.qr(span[:rank].T)[0]
        torch.testing.assert_close(gone, plain - plain @ basis @ basis.T, rtol=1e-4, atol=1e-4)


def test_an_intervention_reaches_what_comes_after_and_ends_with_its_context(
    load: Callable[[str], LoadedModel], tokenizer: Any
) -> None:
    loaded = load("llama")
    change = Intervention(site="resid_post.0", kind="add", vectors=DIRECTIONS[0], amount=30.0)
    before = rows_under(loaded, [], "resid_post.3")
    assert not torch.allclose(rows_under(loaded, [change], "resid_post.3"), before)
    assert torch.equal(rows_under(loaded, [], "resid_post.3"), before)
    steered = generate(loaded, tokenizer, PROMPTS.table, GREEDY, interventions=[change]).column("response")
    assert steered != generate(loaded, tokenizer, PROMPTS.table, GREEDY).column("response")


def test_a_single_head_is_changed_alone(load: Callable[[str], LoadedModel]) -> None:
    loaded = load("llama")
    change = Intervention(site="heads.1.2", kind="add", vectors=np.ones(8, np.float32), amount=1.0)
    difference = rows_under(loaded, [change], "heads.1") - rows_under(loaded, [], "heads.1")
    assert difference[:, 2].allclose(torch.ones(12, 8), atol=1e-5)
    assert difference[:, [0, 1, 3]].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "rotate", "vectors": DIRECTIONS[0]}, "unknown intervention"),
        ({"kind": "add", "vectors": np.zeros(32, np.float32)}, "points nowhere"),
        ({"kind": "add", "vectors": DIRECTIONS}, "takes one vector"),
    ],
)
def test_senseless_interventions_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Intervention(site="resid_post.1", **options)


def test_a_direction_of_another_width_is_refused(load: Callable[[str], LoadedModel]) -> None:
    with pytest.raises(InputError, match="has width 7, the site 32"):
        rows_under(load("llama"), [Intervention(site="resid_post.1", kind="add", vectors=np.ones(7))], "resid_post.1")
