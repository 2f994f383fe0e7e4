"""Changing prompts once they have fired, against plain transformers run token by token with hooks by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harvest import Intervention, Sampling, encode, generate, load_model
from harvest.condition import Condition
from harvest.generation import answer
from harvest.likelihood import mean_logprobs, mean_norms
from harvest.loading import LoadedModel
from store import InputError, ModelRef, PromptSet
from tests.harvest.by_token import AT, CENTRE, CHANGES, PROBES, PUSHES, SPREAD, ByToken

TEXTS = [
    "Paris is in",
    "two plus two is",
    "a",
    "The city of Paris is in France. What is",
    "four four four",
    "What is it? It is the city",
]
PROMPTS = PromptSet.from_rows([{"prompt_id": f"p{row}", "text": text} for row, text in enumerate(TEXTS)]).table
GREEDY = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def loaded(save_tiny: Callable[[str], str]) -> LoadedModel:
    return load_model(ModelRef(save_tiny("llama"), dtype="float32"))


@pytest.fixture(scope="module")
def plain(save_tiny: Callable[[str], str]) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_tiny("llama"), dtype=torch.float32).eval()


def condition(scoring: str, threshold: float) -> Condition:
    return Condition(
        sites=AT, vectors=tuple(PROBES), scoring=scoring, centre=CENTRE, spread=SPREAD, threshold=threshold
    )


def thresholds(plain: Any, tokenizer: Any, scoring: str, new: int = 8) -> list[float]:
    """Ones that some prompts reach and others do not, between the largest scores that they have unchanged up to the
    last of `new` tokens, which is not run itself."""
    largest = []
    for prompt in encode(tokenizer, PROMPTS):
        run = ByToken(plain, scoring, np.inf)
        run.answer(prompt.ids, new)
        largest.append(run.largest)
    ordered = np.sort(largest)
    return [float(ordered[:2].mean()), float(ordered[2:4].mean()), float(ordered[-2:].mean())]


@pytest.mark.parametrize("scoring", ["cosine", "projection"])
def test_once_fired_is_what_running_token_by_token_gives(
    loaded: LoadedModel, plain: Any, tokenizer: Any, scoring: str
) -> None:
    encoded = encode(tokenizer, PROMPTS)
    never = answer(loaded, tokenizer, encoded, GREEDY)
    always = answer(loaded, tokenizer, encoded, GREEDY, interventions=CHANGES)
    assert [each.ids for each in always] == [
        ByToken(plain, scoring, np.inf, always=True).answer(prompt.ids, 8)[0] for prompt in encoded
    ]
    where = set()
    for threshold in thresholds(plain, tokenizer, scoring):
        once = condition(scoring, threshold)
        together = answer(loaded, tokenizer, encoded, GREEDY, interventions=CHANGES, once=once)
        alone = answer(loaded, tokenizer, encoded, replace(GREEDY, token_budget=1), interventions=CHANGES, once=once)
        expected = [ByToken(plain, scoring, threshold).answer(prompt.ids, 8) for prompt in encoded]
        assert [(each.ids, each.fired) for each in together] == expected
        assert alone == together
        for row, prompt in enumerate(encoded):
            before = ByToken(plain, scoring, threshold)
            for token in prompt.ids:
                before.run(int(token))
            where.add("prompt" if before.fired else "answer" if together[row].fired else "nowhere")
            if not together[row].fired:
                assert together[row].ids == never[row].ids
            elif together[row].ids not in (never[row].ids, always[row].ids):
                where.add("its own")
    assert where == {"prompt", "answer", "nowhere", "its own"}


@pytest.mark.parametrize(
    ("name", "threshold", "change"),
    [("gpt2", 0.38, CHANGES[0]), ("mistral", 0.45, replace(CHANGES[0], site="heads.0.1", vectors=PUSHES[0, :12])),
     ("mixtral", 0.45, replace(CHANGES[0], site="router.0", vectors=PUSHES[0, :4]))],
)  # fmt: skip
def test_a_row_of_any_architecture_is_answered_as_it_is_alone(
    save_tiny: Callable[[str], str], tokenizer: Any, name: str, threshold: float, change: Intervention
) -> None:
    """Positions of another kind, a window with its own cache and a single head, sites that are flat over tokens."""
    other = load_model(ModelRef(save_tiny(name), dtype="float32"))
    encoded = encode(tokenizer, PROMPTS)
    zero = np.zeros((3, 2))
    once = Condition(
        sites=AT, vectors=tuple(PROBES), scoring="cosine", centre=zero, spread=zero + 1, threshold=threshold
    )
    together, alone = (
        answer(other, tokenizer, encoded, replace(GREEDY, token_budget=budget), interventions=[change], once=once)
        for budget in (8192, 1)
    )
    assert together == alone
    assert 0 < sum(each.fired for each in together) < len(encoded)


@pytest.mark.parametrize("once", [True, False])
def test_log_probabilities_are_those_of_running_token_by_token(
    loaded: LoadedModel, plain: Any, tokenizer: Any, once: bool
) -> None:
    encoded = encode(tokenizer, PROMPTS)
    threshold = thresholds(plain, tokenizer, "cosine", new=1)[0]
    counted = [np.arange(len(prompt)) % 3 != 1 for prompt in encoded]
    counted[2][:] = [True, *[False] * (len(encoded[2]) - 1)]
    for budget in (1, 4096):
        found = mean_logprobs(
            loaded,
            encoded,
            counted,
            interventions=CHANGES,
            once=condition("cosine", threshold) if once else None,
            token_budget=budget,
        )
        for row, prompt in enumerate(encoded):
            run = ByToken(plain, "cosine", threshold, always=not once)
            expected = np.array([np.nan, *run.logprobs(prompt.ids)])[counted[row]]
            mean = np.nanmean(expected) if row != 2 else np.nan
            np.testing.assert_allclose(found[row], mean, rtol=1e-4, atol=1e-4)
    unchanged = mean_logprobs(loaded, encoded[:1], [np.ones(len(encoded[0]), bool)])
    ids = torch.from_numpy(encoded[0].ids.astype(np.int64))[None]
    loss = plain(ids, labels=ids).loss
    np.testing.assert_allclose(unchanged[0], -loss.item(), rtol=1e-5)


def word(plain: Any, tokenizer: Any, text: str, **options: Any) -> Condition:
    """Fires at the last token of `text` and at no other."""
    token = tokenizer(text, add_special_tokens=False).input_ids[-1]
    vector = plain.get_input_embeddings().weight[token].detach().numpy()
    scale = np.array([[0.0, 0.0]] * len(options.get("roles", ("all",)))).reshape(1, -1)
    return Condition(
        sites=("resid_pre.0",),
        vectors=(3 * vector,),
        scoring="cosine",
        centre=scale,
        spread=scale + 1,
        threshold=0.999,
        **options,
    )


def fired(
    loaded: LoadedModel, tokenizer: Any, rows: list[dict[str, Any]], once: Condition, *, new: int = 1
) -> list[bool]:
    table = PromptSet.from_rows([{"prompt_id": str(row), **given} for row, given in enumerate(rows)]).table
    answered = generate(loaded, tokenizer, table, Sampling(max_new_tokens=new), interventions=CHANGES, once=once)
    return list(answered.column("fired").to_pylist())


def test_padding_a_first_token_and_a_prefix_do_not_fire(loaded: LoadedModel, plain: Any, tokenizer: Any) -> None:
    """Padding has the id of the first token of every prompt, for which the condition looks."""
    rows = [{"text": text} for text in ("a", "The city of Paris is in France.")]
    assert fired(loaded, tokenizer, rows, word(plain, tokenizer, "<s>")) == [False, False]
    assert fired(loaded, tokenizer, rows, word(plain, tokenizer, "<s>", prefix=None)) == [True, True]
    begun = [{"text": text} for text in ("~ a", "~~ a", "~", "a ~")]
    assert fired(loaded, tokenizer, begun, word(plain, tokenizer, "~")) == [True] * 4
    # Behind the prefix it counts, and so does the last token of a prompt that is nothing but the prefix.
    opening = (0, *tokenizer("~", add_special_tokens=False).input_ids)
    assert fired(loaded, tokenizer, begun, word(plain, tokenizer, "~", prefix=opening)) == [False, True, True, True]
    # The first has room for one token only: while the other goes on, its row is filled with what it looks for.
    full = fired(loaded, tokenizer, [{"text": "~" * 126}, {"text": "a"}], word(plain, tokenizer, "<s>"), new=4)
    assert full == [False, False]
    encoded = encode(tokenizer, PROMPTS)
    pools = condition("cosine", 0.0).pools(encoded[0])
    assert pools.tolist() == [-1, *[0] * (len(encoded[0]) - 1)]


def test_a_conversation_fires_by_its_roles_and_stays_fired(loaded: LoadedModel, plain: Any, tokenizer: Any) -> None:
    def turns(*words: str) -> dict[str, Any]:
        roles = ("user", "assistant", "user")
        return {"messages": [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]}

    chats = [turns("~", "b", "c"), turns("a", "~", "c"), turns("a", "b", "~"), turns("a", "b", "c")]
    assert fired(loaded, tokenizer, chats, word(plain, tokenizer, "~")) == [True, True, True, False]
    only = partial(word, plain, tokenizer, "~")
    assert fired(loaded, tokenizer, chats, only(roles=("user",))) == [True, False, True, False]
    assert fired(loaded, tokenizer, chats, only(roles=("assistant", "user"))) == [True, True, True, False]
    # The scale is the role's own: one that the assistant's tokens cannot reach.
    far = replace(only(roles=("assistant", "user")), centre=np.array([[9.0, 9.0, 0.0, 0.0]]))
    assert fired(loaded, tokenizer, chats, far) == [True, False, True, False]
    # An earlier turn's firing changes the answer to the last as running all of it token by token does.
    encoded = encode(
        tokenizer, PromptSet.from_rows([{"prompt_id": str(i), **chat} for i, chat in enumerate(chats)]).table
    )
    once = condition("cosine", thresholds(plain, tokenizer, "cosine")[1])
    answers = answer(loaded, tokenizer, encoded, GREEDY, interventions=CHANGES, once=once)
    expected = [ByToken(plain, "cosine", once.threshold).answer(prompt.ids, 8) for prompt in encoded]
    assert [(each.ids, each.fired) for each in answers] == expected


def test_what_is_recorded_and_refused(loaded: LoadedModel, tokenizer: Any) -> None:
    import json

    once = condition("cosine", 0.5)
    answered = generate(loaded, tokenizer, PROMPTS, GREEDY, interventions=CHANGES, once=once)
    assert json.loads(answered.column("generation")[0].as_py())["once"] == once.record()
    assert "once" not in json.loads(generate(loaded, tokenizer, PROMPTS, GREEDY).column("generation")[0].as_py())
    with pytest.raises(InputError, match="cosine or projection"):
        replace(once, scoring="mahalanobis")
    with pytest.raises(InputError, match="points nowhere"):
        replace(once, vectors=(PROBES[0], 0 * PROBES[1], PROBES[2]))
    with pytest.raises(InputError, match="has width 7, the site 32"):
        generate(loaded, tokenizer, PROMPTS, GREEDY, once=replace(once, vectors=(np.ones(7),) * 3))


@pytest.mark.parametrize("kind", ["add", "ablate", "clamp"])
def test_random_controls_have_the_same_norms(kind: str) -> None:
    vectors = PUSHES * np.array([[0.1], [1.0], [30.0]], np.float32)
    own = Intervention(site="resid_post.1", kind=kind, vectors=vectors if kind == "ablate" else vectors[2], amount=2.5)
    drawn = [own.control(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for control in drawn:
        assert (control.site, control.kind, control.amount) == (own.site, own.kind, own.amount)
        np.testing.assert_allclose(
            np.linalg.norm(control.vectors, axis=1), np.linalg.norm(own.vectors, axis=1), rtol=1e-5
        )
    assert (drawn[0].vectors == drawn[1].vectors).all()
    cosines = [
        abs((a.vectors[0] @ b.vectors[0]) / np.linalg.norm(a.vectors[0]) / np.linalg.norm(b.vectors[0]))
        for a, b in ((drawn[0], own), (drawn[2], own), (drawn[0], drawn[2]))
    ]
    assert max(cosines) < 0.8


def test_mean_norms_leave_the_first_token_out(loaded: LoadedModel, plain: Any, tokenizer: Any) -> None:
    encoded = encode(tokenizer, PROMPTS)
    with torch.no_grad():
        states = [
            plain(torch.from_numpy(prompt.ids.astype(np.int64))[None], output_hidden_states=True).hidden_states
            for prompt in encoded
        ]
    found = mean_norms(loaded, encoded, ["resid_post.0", "resid_post.2"], token_budget=40)
    for layer in (0, 2):
        norms = np.concatenate([hidden[layer + 1][0, 1:].double().norm(dim=1).numpy() for hidden in states])
        np.testing.assert_allclose(found[f"resid_post.{layer}"], norms.mean(), rtol=1e-5)
