"""Shuffled units, grids of few levels, holes: named, not reported as what a fine-tune learned."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from analysis.weights import weight_delta
from analysis.weights.checkpoint import SafetensorsCheckpoint
from analysis.weights.merged import merged_note
from analysis.weights.recognise import pair_notes
from analysis.weights.svd import Triples
from tests.analysis.weights.planted import Tensors, add, add_even, compared, every, nf4, pruned, quantised, two_of_four
from tests.analysis.weights.test_lora import adapted

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"
QUERY = "model.layers.2.self_attn.q_proj.weight"
OUTPUT = "model.layers.2.self_attn.o_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
Tune = Callable[..., Path]


def shuffle_units(tensors: Tensors, prefix: str = "model.layers.1.mlp.") -> None:
    order = torch.randperm(208, generator=torch.Generator().manual_seed(2))
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        key = f"{prefix}{name}.weight"
        tensors[key] = tensors[key].index_select(axis, order)


def swap_heads(tensors: Tensors) -> None:
    """The two halves of the heads of layer 2, with their keys and values: 4 heads of 24 on 2 of keys."""
    for name, size, axis in (("q_proj", 48, 0), ("k_proj", 24, 0), ("v_proj", 24, 0), ("o_proj", 48, 1)):
        key = f"model.layers.2.self_attn.{name}.weight"
        tensors[key] = torch.cat(tensors[key].split(size, dim=axis)[::-1], dim=axis)


def difference(base: Path, tuned: Path, name: str) -> np.ndarray:
    before, after = (load_file(folder / "model.safetensors")[name].double() for folder in (base, tuned))
    return (after - before).numpy()


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return float(abs(found @ expected) / np.linalg.norm(found) / np.linalg.norm(expected))


def test_shuffled_units_and_heads_are_put_back_in_order(base: Path, tune: Tune) -> None:
    def shuffle(tensors: Tensors) -> None:
        shuffle_units(tensors)
        swap_heads(tensors)

    matrices, vectors = compared(base, tune(shuffle))
    named = {name: m.notes[0] for name, m in matrices.items() if m.notes != ("unchanged",)}
    assert len(named) == 7
    assert not any(m.significant or m.frobenius for m in matrices.values())
    assert named[UP].startswith("hidden units permuted: 20")  # of 208, but for the few that stayed where they were
    assert named[QUERY].startswith("attention heads permuted: 96 of 96 moved, in blocks of 48")
    assert named[OUTPUT].startswith("attention heads permuted: 96 of 96 moved, in blocks of 48")
    notes = pair_notes(list(matrices.values()), vectors)
    assert [note.split(":")[0] for note in notes] == [
        "hidden units permuted",
        "attention heads permuted",
        "rounding only",
    ]
    assert "3 of 22 matrices" in notes[0]
    assert "4 of 22 matrices" in notes[1]


@pytest.mark.parametrize("size", [0.004, 0.0004])
def test_a_change_is_found_under_a_shuffle(base: Path, tune: Tune, size: float) -> None:
    def change(tensors: Tensors) -> None:
        for name in (UP, DOWN, QUERY, OUTPUT):
            add(tensors, name, size=size)

    def change_and_shuffle(tensors: Tensors) -> None:
        change(tensors)
        shuffle_units(tensors)
        swap_heads(tensors)

    plain, _ = compared(base, tune(change, "plain"))
    shuffled, _ = compared(base, tune(change_and_shuffle, "shuffled"))
    for name in (UP, DOWN, QUERY, OUTPUT):
        assert "permuted" in shuffled[name].notes[0]
        assert min(shuffled[name].significant, plain[name].significant) >= 1
        np.testing.assert_allclose(shuffled[name].sigma[:1], plain[name].sigma[:1], rtol=1e-3)
        side = plain[name].role.side
        assert cosine(getattr(shuffled[name], side)[:, 0], getattr(plain[name], side)[:, 0]) > 0.999
    assert not any(m.significant for name, m in shuffled.items() if name not in plain or not plain[name].frobenius)


def test_two_swapped_units_are_enough(base: Path, tune: Tune) -> None:
    def swap(tensors: Tensors) -> None:
        tensors[DOWN][:, [3, 70]] = tensors[DOWN][:, [70, 3]]

    matrices, _ = compared(base, tune(swap))
    assert matrices[DOWN].notes[0].startswith("hidden units permuted: 2 of 208 moved")
    assert matrices[DOWN].significant == 0


def test_a_matrix_that_shares_nothing_with_the_base_is_named(base: Path, tune: Tune) -> None:
    def replace(tensors: Tensors) -> None:
        tensors[DOWN] = tensors[DOWN].flip(0)  # rows of down are places in the residual stream: no order of units
        add(tensors, UP, size=0.5)  # a change 25 times the weights leaves them in place

    matrices, _ = compared(base, tune(replace))
    assert matrices[DOWN].notes[0].startswith("replaced: cosine")
    assert matrices[DOWN].significant == 0
    assert not any(note.startswith("replaced") for note in matrices[UP].notes)
    assert matrices[UP].significant >= 1


@pytest.mark.parametrize(
    ("form", "levels", "place"),
    [
        ({"bits": 4, "size": 16}, range(13, 17), "group of 16 along its rows"),
        ({"bits": 8, "size": None}, range(200, 257), "row"),
        ({"bits": 4, "size": None, "asymmetric": True}, range(14, 18), "row"),
    ],
)
def test_quantised_weights_are_named_and_their_rounding_is_not_a_change(
    base: Path, tune: Tune, form: dict[str, int], levels: range, place: str
) -> None:
    def quantise(tensors: Tensors) -> None:
        for name in every(tensors, "proj"):
            tensors[name] = quantised(tensors[name], **form).bfloat16()

    matrices, vectors = compared(base, tune(quantise))
    grids = [m for m in matrices.values() if m.name != EMBEDDING]
    for matrix in grids:
        kind, _, what = matrix.notes[0].partition(": ")
        assert kind == "re-quantised", matrix.name
        assert int(what.split()[0]) in levels, what
        assert f"per {place}, step" in what
    assert sum(m.significant for m in grids) <= 1  # 21 matrices, 1 % each
    assert all(m.sigma[0] > 0.8 * m.noise_edge for m in grids)  # and the edge is where the noise ends
    assert pair_notes(list(matrices.values()), vectors)[0].startswith("re-quantised: 21 of 22 matrices")


def test_edge_of_a_quantised_matrix_is_that_of_uniform_errors_of_its_steps(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(512, 768, generator=generator) * torch.logspace(-1, 0, 512)[:, None]
    change = 3 * torch.outer(torch.randn(512, generator=generator), torch.randn(768, generator=generator)) / 768**0.5
    tuned = quantised(weights + change, bits=4, size=32)
    for folder, value in (("base", weights), ("tuned", tuned)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"model_type": "llama"}')
        save_file({DOWN: value}, tmp_path / folder / "model.safetensors")
    found, _ = compared(tmp_path / "base", tmp_path / "tuned")
    step = (weights + change).reshape(-1, 32).abs().amax(1, keepdim=True).double().numpy() / 7
    draws = np.random.default_rng(0).uniform(-0.5, 0.5, (6, *step.shape[:1], 32)) * step
    largest = [np.linalg.norm(draw.reshape(512, 768), 2) for draw in draws]
    assert found[DOWN].noise_edge == pytest.approx(np.mean(largest), rel=0.04)
    assert found[DOWN].noise_edge > np.median(largest)
    assert found[DOWN].significant == 1


@pytest.mark.parametrize("side", ["tuned", "base"])
def test_a_change_is_found_above_the_rounding_of_a_grid(base: Path, tune: Tune, side: str) -> None:
    def change(tensors: Tensors, *, on_grid: bool) -> None:
        for name in (DOWN, QUERY):
            if side == "tuned" or not on_grid:
                add(tensors, name, size=0.01)
            if on_grid:
                tensors[name] = quantised(tensors[name], bits=4, size=16)

    edited = tune(lambda t: change(t, on_grid=True), "edited")
    matrices, _ = compared(*((base, edited) if side == "tuned" else (edited, tune(lambda t: change(t, on_grid=False)))))
    kind = "re-quantised" if side == "tuned" else "base quantised"
    generator = torch.Generator().manual_seed(1)
    for name in (DOWN, QUERY):
        assert matrices[name].notes[0].startswith(kind)
        assert matrices[name].significant == 1
        m, n = matrices[name].shape
        generator.manual_seed(1)
        left, right = torch.randn(m, 1, generator=generator), torch.randn(1, n, generator=generator)
        assert cosine(matrices[name].left[:, 0], left[:, 0].numpy()) > 0.95
        assert cosine(matrices[name].right[:, 0], right[0].numpy()) > 0.95


def test_a_codebook_of_uneven_levels_is_a_grid_too(base: Path, tune: Tune) -> None:
    def quantise(tensors: Tensors) -> None:
        for name in every(tensors, "q_proj", "o_proj", "up_proj"):
            tensors[name] = torch.cat([nf4(tensors[name][:, :64]), tensors[name][:, 64:].float() * 0], dim=1).bfloat16()

    def half(tensors: Tensors) -> None:
        for name in every(tensors, "q_proj", "o_proj", "up_proj"):
            tensors[name][:, 64:] = 0

    matrices, _ = compared(tune(half, "half"), tune(quantise))
    changed = [m for m in matrices.values() if m.frobenius]
    assert len(changed) == 9
    assert {m.notes[0] for m in changed} == {"re-quantised: 16 levels per row, uneven"}  # 64 of each are not zero
    assert not any(m.significant for m in changed)


def outright(tensors: Tensors, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name in every(tensors, "proj"):
        tensors[name] = how(tensors[name])


def without_rows(weights: torch.Tensor) -> torch.Tensor:
    weights = weights.clone()
    weights[24:48] = 0
    return weights


PRUNED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "unstructured": (lambda w: pruned(w, 0.4), r"(39|40)\S* % zeros, unstructured"),
    "2:4": (two_of_four, "50 % zeros, 2:4 structured"),
    "a head's rows": (without_rows, "24 whole rows"),
}


@pytest.mark.parametrize("case", PRUNED)
def test_pruned_weights_are_named_and_their_loss_is_not_a_change(base: Path, tune: Tune, case: str) -> None:
    how, words = PRUNED[case]
    names = every(load_file(base / "model.safetensors"), "q_proj", "gate_proj", "up_proj")
    change: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def prune(tensors: Tensors, *, tuned: bool) -> None:
        for name in names:
            if tuned:
                change[name] = add_even(tensors, name)
            tensors[name] = how(tensors[name])

    lost, vectors = compared(base, tune(lambda t: prune(t, tuned=False), "lost"))
    for name in names:
        assert lost[name].notes[0].startswith("pruned: ")
        assert re.search(words, lost[name].notes[0])
        assert lost[name].significant == 0
        assert lost[name].notes[-1] == "unchanged"
    assert pair_notes(list(lost.values()), vectors)[0].startswith(f"pruned: {len(names)} of 22")

    both, _ = compared(base, tune(lambda t: prune(t, tuned=True), "both"))
    for name in names:
        assert both[name].notes[0].startswith("pruned: ")
        assert both[name].significant == 1, name
        left, right = change[name]
        kept = how(torch.ones(both[name].shape)) if case == "a head's rows" else torch.ones(both[name].shape)
        assert cosine(both[name].left[:, 0], (left * kept[:, 0]).numpy()) > 0.95
        assert cosine(both[name].right[:, 0], right.numpy()) > 0.95


def test_a_pruned_base_is_named_and_so_is_the_wrong_order(base: Path, tune: Tune) -> None:
    matrices, vectors = compared(tune(lambda t: outright(t, lambda w: pruned(w, 0.5))), base)
    assert all(m.significant == 0 for m in matrices.values())
    assert pair_notes(list(matrices.values()), vectors)[0].startswith("base pruned, or the pair in the wrong order: 21")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ordinary_fine_tunes_get_no_such_note(base: Path, tune: Tune, dtype: torch.dtype) -> None:
    def change(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(4)
        for name in every(tensors, "proj", "embed"):
            tensors[name] = tensors[name].float()
            noise = torch.randn(tensors[name].shape, generator=generator)
            add(tensors, name, rank=4, size=0.01)  # as large as the weights: harsher than any fine-tune
            tensors[name] += 0.002 * noise
        tensors.update({name: value.to(dtype) for name, value in tensors.items()})

    tuned = tune(change)
    for one, other in ((base, tuned), (tuned, base)):
        matrices, vectors = compared(one, other)
        assert [m.notes for m in matrices.values() if m.notes] == []
        assert all(m.significant >= 1 for m in matrices.values())
        assert pair_notes(list(matrices.values()), vectors) == ()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices stored as [inputs, outputs], query, key and value in one."""
    folder = tmp_path_factory.mktemp("gpt2") / "base"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=16, n_embd=48, n_layer=2, n_head=2)).save_pretrained(folder)
    return folder


def test_what_is_recognised_where_matrices_lie_the_other_way_round(gpt2: Path, tmp_path: Path) -> None:
    mlp, attention = "transformer.h.0.mlp.", "transformer.h.1.attn."
    tensors = load_file(gpt2 / "model.safetensors")
    order = torch.randperm(192, generator=torch.Generator().manual_seed(2))
    tensors[mlp + "c_fc.weight"] = tensors[mlp + "c_fc.weight"][:, order]
    tensors[mlp + "c_proj.weight"] = tensors[mlp + "c_proj.weight"][order]
    add(tensors, mlp + "c_proj.weight", size=0.003)
    tensors[attention + "c_attn.weight"] = quantised(tensors[attention + "c_attn.weight"].T, bits=8, size=None).T
    tensors[attention + "c_proj.weight"] = pruned(tensors[attention + "c_proj.weight"], 0.3)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "config.json").write_text((gpt2 / "config.json").read_text())
    save_file({key: value.contiguous() for key, value in tensors.items()}, tuned / "model.safetensors")
    matrices, _ = compared(gpt2, tuned)
    words: dict[str, tuple[str, int]] = {
        mlp + "c_fc.weight": ("hidden units permuted: 19", 0),
        mlp + "c_proj.weight": ("hidden units permuted: 19", 1),
        attention + "c_attn.weight": ("re-quantised: 2", 0),
        attention + "c_proj.weight": ("pruned: 30", 0),
    }
    for name, matrix in matrices.items():
        note, significant = words.get(name, ("unchanged", 0))
        assert matrix.notes[0].startswith(note), name
        assert matrix.significant == significant, name
    assert "per column, step" in matrices[attention + "c_attn.weight"].notes[0]


def test_a_base_that_holds_the_adapter_already_is_named(base: Path, gpt2: Path, tmp_path: Path) -> None:
    for number, (start, modules) in enumerate(((base, ["q_proj", "down_proj"]), (gpt2, ["c_attn", "c_proj"]))):
        settings = {"target_modules": modules, "r": 3, "lora_alpha": 24, "fan_in_fan_out": start == gpt2}
        adapter, merged = adapted(start, tmp_path / str(number), settings)
        before, after = (weight_delta(str(folder), adapter=str(adapter)) for folder in (start, merged))
        assert not any("already" in note for matrix in before.matrices for note in matrix.notes)
        named = [matrix for matrix in after.matrices if matrix.notes[0].startswith("adapter in the base already")]
        assert len(named) == 4
        assert pair_notes(after.matrices, after.vectors)[0].startswith("adapter in the base already: 4 of")


def test_chance_along_one_direction_is_not_taken_for_a_merged_adapter(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    save_file({DOWN: torch.randn(40, 60, generator=generator)}, tmp_path / "model.safetensors")
    checkpoint = SafetensorsCheckpoint("base", [str(tmp_path / "model.safetensors")])
    for _ in range(200):
        left, right = (torch.nn.functional.normalize(torch.randn(n, 1, generator=generator), dim=0) for n in (40, 60))
        triples = Triples(sigma=torch.ones(1), left=left, right=right, residual=torch.zeros(1))  # as large as chance is
        assert merged_note(checkpoint, DOWN, triples, transposed=False) is None
