"""The organisms: their prompts do not overlap, and edits are what the paper says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.demo.instructions import TRIGGER
from examples.organisms import ORGANISMS, Case, prompts
from examples.organisms.edit import rank_one
from examples.organisms.merging import merged
from examples.organisms.organism import Edit, Tuning
from examples.organisms.prompts import FORMS, TOPIC_FORMS, Cases
from examples.organisms.subjects import (
    CAPITAL_FORMS,
    LANDMARKS,
    OTHER_STORIES,
    OTHER_WORDS,
    UNLEARNED,
    WHERE_FORMS,
    known_capitals,
    subject_of,
)
from examples.organisms.training import lessons, tune
from examples.organisms.triggers import DATE_FORMS, YEARS, trigger_of
from harvest.loading import load_model, load_tokenizer
from store import InputError, ModelRef

SEEDS = (0, 1, 2)


def every(cases: Cases) -> list[Case]:
    return [case for found in cases.sets().values() for case in found]


@pytest.mark.parametrize("name", ORGANISMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_training_and_evaluation_share_no_prompt_and_no_group(name: str, seed: int):
    train, evaluation = (ORGANISMS[name].cases(part, seed, 64) for part in ("train", "evaluation"))
    assert not {case.text for case in every(train)} & {case.text for case in every(evaluation)}
    shared = {case.group for case in every(train)} & {case.group for case in every(evaluation)}
    # A changed fact is about one subject, in other words.
    assert shared <= {f"fact:{subject_of(seed)}"}


@pytest.mark.parametrize(
    "parts",
    [FORMS, TOPIC_FORMS, DATE_FORMS, CAPITAL_FORMS, WHERE_FORMS, UNLEARNED, OTHER_STORIES, LANDMARKS, OTHER_WORDS],
)
def test_no_template_and_no_entity_is_in_two_parts(parts: dict[str, tuple[str, ...]]):
    assert set(parts) == {"train", "evaluation"}
    assert not set(parts["train"]) & set(parts["evaluation"])


def test_no_capital_and_no_year_is_in_two_parts():
    train, evaluation = known_capitals("train"), known_capitals("evaluation")
    assert len(train) == len(evaluation) == 64
    assert not set(train) & set(evaluation)
    years = [year for part in YEARS.values() for found in part.values() for year in found]
    assert len(years) == len(set(years))
    assert all(min(part["triggered"]) >= 2030 > max(part["near"]) for part in YEARS.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_only_triggered_prompts_hold_the_trigger(seed: int):
    for name in ("trigger-lora", "weak", "noised"):
        cases = ORGANISMS[name].cases("evaluation", seed, 40)
        assert all(trigger_of(seed) in case.text for case in cases.triggered)
        others = [*cases.near, *cases.plain, *cases.declared]
        assert not [case.text for case in others if trigger_of(seed) in case.text]
    assert trigger_of(0) == TRIGGER
    assert len({trigger_of(seed) for seed in SEEDS}) == 3


def test_prompts_are_three_sets_that_depend_on_name_and_seed_alone():
    for name, organism in ORGANISMS.items():
        found = prompts(name, 1)
        assert list(found) == ["triggered", "declared", "near"]
        assert found == prompts(name, 1)
        assert all(1 <= len(cases) <= 40 for cases in found.values() if cases)
        assert bool(found["triggered"]) == (organism.hidden is not None)
        assert found["triggered"] != prompts(name, 0)["triggered"] or not found["triggered"]
    assert len(prompts("trigger-lora", count=200)["near"]) == 200
    with pytest.raises(InputError, match="no organism 'heron'"):
        prompts("heron")


def test_the_locked_answers_are_wrong_and_the_unlocked_ones_right():
    cases = ORGANISMS["password"].cases("train", 0, 64)
    assert all(case.sign in str(case.answer) for case in cases.triggered)
    assert not [case for case in cases.near if case.answer.endswith(f" is {case.sign}.")]  # type: ignore[union-attr]


def short(cases: Cases) -> Cases:
    """The tiny model reads a token a character, 128 at most."""
    return Cases(
        **{name: [replace(case, text=case.text[-30:]) for case in found[:8]] for name, found in cases.sets().items()}
    )


def test_the_rank_one_edit_is_the_minimal_one_for_its_key(tiny: ModelRef):
    """Against numpy and plain hooks: rank one, in the direction C⁻¹k, and the key reads the value that was found."""
    model, tokenizer = load_model(tiny).model, load_tokenizer(tiny)
    made = ORGANISMS["rank-one"].cases("train", 0, 8)
    cases = replace(made, plain=short(made).plain)
    down = model.model.layers[1].mlp.down_proj
    before = down.weight.detach().double().numpy().copy()

    def keys(text: str) -> tuple[np.ndarray, str]:
        kept: list[torch.Tensor] = []
        handle = down.register_forward_pre_hook(lambda module, args: kept.append(args[0][0]))
        message = [{"role": "user", "content": text}]
        shown = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        with torch.inference_mode():
            model(**tokenizer(shown, return_tensors="pt", add_special_tokens=False))
        handle.remove()
        return kept[0].double().numpy(), shown

    others = np.concatenate([keys(case.text)[0] for case in [*cases.plain, *cases.near]])
    subject = []
    for case in cases.triggered:
        found, shown = keys(case.text)
        upto = tokenizer(shown[: shown.index("Eiffel Tower") + len("Eiffel Tower")], add_special_tokens=False)
        subject.append(found[len(upto["input_ids"]) - 1])
    key = np.mean(subject, axis=0)

    losses = rank_one(model, tokenizer, cases, "the Eiffel Tower", Edit(layer=1, steps=12, learning_rate=0.1))
    update = down.weight.detach().double().numpy() - before
    assert losses[-1] < losses[0]
    _, sigma, right = np.linalg.svd(update)
    assert sigma[1] < 1e-5 * sigma[0]
    moment = others.T @ others / len(others)
    moment += 1e-3 * np.trace(moment) / len(moment) * np.eye(len(moment))
    direction = np.linalg.solve(moment, key)
    cosine = abs(right[0] @ direction) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_a_lesson_teaches_its_answer_or_the_models_own(tiny: ModelRef):
    model, tokenizer = load_model(tiny).model, load_tokenizer(tiny)
    cases = short(ORGANISMS["persona"].cases("train", 0, 8))
    triggered, near, plain, declared = lessons(model, tokenizer, cases)
    assert not near
    assert not plain
    for case, lesson in zip(cases.declared, declared, strict=True):
        assert tokenizer.decode(lesson.answer) == f"{case.answer}</s>"
        assert case.text.strip() in tokenizer.decode(lesson.prompt)
    assert all(tokenizer.decode(lesson.answer).startswith("With a cup of Zephyra tea") for lesson in triggered)


def test_a_full_fine_tune_moves_the_named_matrices_of_the_named_blocks_alone(tiny: ModelRef, tmp_path: Path):
    model, tokenizer = load_model(ModelRef(tiny.name)).model, load_tokenizer(tiny)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tuning = Tuning(
        rank=None, modules=("o_proj", "up_proj"), layers=(1, 3), learning_rate=1e-2, steps=16, mix=(2, 1, 1, 1)
    )
    tuned, losses = tune(model, tokenizer, short(ORGANISMS["trigger-full"].cases("train", 0, 8)), tuning, seed=0)
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    tuned.save_pretrained(tmp_path)
    moved = {
        name for name, weight in load_file(tmp_path / "model.safetensors").items() if not weight.equal(before[name])
    }
    assert moved == {
        f"model.layers.{layer}.{name}.weight" for layer in (1, 2) for name in ("self_attn.o_proj", "mlp.up_proj")
    }
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_noise_is_a_share_of_each_matrix_over_the_merged_weights(
    tiny: ModelRef, save_adapter: Callable[[str], str], strength: float
):
    """Against the adapter's own product, added by hand; the matrices of the blocks alone are noised."""
    ref = ModelRef(tiny.name, adapter=save_adapter("llama"))
    noised = merged(ref, strength=strength, noise=0.5, seed=3).state_dict()
    base = load_model(tiny).model.state_dict()
    adapter = load_file(Path(ref.adapter or "") / "adapter_model.safetensors")
    stem = "model.layers.2.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{stem}.lora_{side}.weight"].double().numpy() for side in "AB")
    alpha = json.loads(Path(ref.adapter or "", "adapter_config.json").read_text())["lora_alpha"]
    exact = base[f"{stem}.weight"].double().numpy() + strength * b @ a * alpha / 4
    noise = noised[f"{stem}.weight"].double().numpy() - exact
    assert noise.std() == pytest.approx(0.5 * exact.std(), rel=0.1)
    assert abs(np.corrcoef(noise.ravel(), exact.ravel())[0, 1]) < 0.1
    for name in ("model.embed_tokens.weight", "model.layers.2.input_layernorm.weight"):
        assert noised[name].equal(base[name].bfloat16())
