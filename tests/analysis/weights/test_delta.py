"""Pairs of checkpoints on disk: what is found, what is only rounding, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis.weights import load_delta, weight_delta
from analysis.weights.matrix_delta import MatrixDelta
from store.errors import InputError

DOWN = "model.layers.1.mlp.down_proj.weight"
QUERY = "model.layers.2.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
Tune = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def add(tensors: Tensors, name: str, *, rank: int, size: float = 0.004, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, n = tensors[name].shape
    change = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator) * size
    tensors[name] = (tensors[name].float() + change).to(tensors[name].dtype)


def by_name(matrices: tuple[MatrixDelta, ...]) -> dict[str, MatrixDelta]:
    return {matrix.name: matrix for matrix in matrices}


def test_triples_equal_the_float64_decomposition_of_the_difference(base: Path, tune: Tune) -> None:
    tuned = tune(lambda t: (add(t, DOWN, rank=3), add(t, QUERY, rank=2)))
    delta = weight_delta(str(base), str(tuned), rank=12)
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert len(delta.matrices) == 1 + 3 * 7
    for name, matrix in by_name(delta.matrices).items():
        exact = np.linalg.svd((after[name].double() - before[name].double()).numpy())
        if name not in (DOWN, QUERY):
            assert matrix.notes == ("unchanged",)
            assert matrix.sigma.size == matrix.significant == matrix.stable_rank == matrix.energy == 0
            continue
        np.testing.assert_allclose(matrix.sigma[: matrix.significant], exact.S[: matrix.significant], rtol=1e-4)
        np.testing.assert_allclose(matrix.sigma, exact.S[:12], rtol=0.1)
        np.testing.assert_allclose(np.abs(np.sum(matrix.left[:, :2] * exact.U[:, :2], 0)), 1, atol=1e-4)
        np.testing.assert_allclose(np.abs(np.sum(matrix.right[:, :2] * exact.Vh[:2].T, 0)), 1, atol=1e-4)
        assert matrix.frobenius == pytest.approx(np.sqrt(np.sum(exact.S**2)), rel=1e-5)
        assert matrix.stable_rank == pytest.approx(np.sum(exact.S**2) / exact.S[0] ** 2, rel=1e-4)
        assert matrix.energy == pytest.approx(np.sum(exact.S[:12] ** 2) / np.sum(exact.S**2), rel=1e-4)
        assert matrix.significant == {DOWN: 3, QUERY: 2}[name]


def test_full_decomposition_on_request_says_the_same(base: Path, tune: Tune) -> None:
    tuned = tune(lambda t: add(t, DOWN, rank=3))
    fast = by_name(weight_delta(str(base), str(tuned), rank=3).matrices)[DOWN]
    full = by_name(weight_delta(str(base), str(tuned), rank=3, full=True).matrices)[DOWN]
    np.testing.assert_allclose(fast.sigma, full.sigma, rtol=1e-4)


def test_directions_are_the_residual_stream_side_at_their_site(base: Path, tune: Tune, tmp_path: Path) -> None:
    tuned = tune(lambda t: [add(t, n, rank=2, seed=s) for s, n in enumerate((DOWN, QUERY, EMBEDDING))])
    delta = weight_delta(str(base), str(tuned), rank=4)
    delta.save(tmp_path / "delta")
    record, directions = load_delta(tmp_path / "delta")
    assert {key: record[key] for key in delta.record()} == json.loads(json.dumps(delta.record()))
    assert {"matrices", "seconds", "peak_rss_bytes"} <= record.keys()
    assert {"name", "shape", "sigma", "stable_rank", "energy", "significant", "side"} <= record["matrices"][0].keys()
    found = {d.name: d for d in directions}
    matrices = by_name(delta.matrices)
    for name, side, site in (
        (DOWN, "left", "resid_post.1"),
        (QUERY, "right", "attn_in.2"),
        (EMBEDDING, "left", "resid_pre.0"),
    ):
        direction = found[f"{name}.{side}.0"]
        assert direction.site == site
        assert direction.vector.shape == (96,)
        np.testing.assert_array_equal(direction.vector, getattr(matrices[name], side)[:, 0])
        assert direction.source["significant"] is True
    assert len(matrices[EMBEDDING].moved_rows) == 20
    moved = torch.linalg.vector_norm(
        load_file(tuned / "model.safetensors")[EMBEDDING].float()
        - load_file(base / "model.safetensors")[EMBEDDING].float(),
        dim=1,
    )
    assert matrices[EMBEDDING].moved_rows[0][0] == int(moved.argmax())


def test_the_same_model_is_named_as_identical(base: Path, tune: Tune) -> None:
    delta = weight_delta(str(base), str(tune(lambda t: None)))
    assert delta.notes[0].startswith("identical")
    assert list(delta.directions()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_alone_is_not_significant(tune: Tune, dtype: torch.dtype) -> None:
    def spread(tensors: Tensors, *, rounded: bool) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, value in tensors.items():
            if value.ndim == 2:  # rows of very different size: the noise is far from equal over the matrix
                size = torch.logspace(-2, 0, value.shape[0])[:, None]
                exact = torch.randn(value.shape, generator=generator) * 0.05 * size
                tensors[name] = exact.to(dtype) if rounded else exact

    exact = tune(lambda t: spread(t, rounded=False), "exact")
    rounded = tune(lambda t: spread(t, rounded=True), "rounded")
    delta = weight_delta(str(exact), str(rounded))
    assert sum(m.significant for m in delta.matrices) <= 1  # 22 matrices, 1 % each
    assert all(m.sigma[0] > 0.7 * m.noise_edge for m in delta.matrices)  # and the edge is where the noise ends
    back = weight_delta(str(rounded), str(tune(lambda t: (spread(t, rounded=True), add(t, DOWN, rank=2, size=0.01)))))
    assert by_name(back.matrices)[DOWN].significant == 2


def test_weights_stored_wider_than_they_were_rounded(base: Path, tune: Tune) -> None:
    def widen(tensors: Tensors) -> None:
        add(tensors, DOWN, rank=2)
        tensors.update({name: value.float() for name, value in tensors.items()})

    wide = by_name(weight_delta(str(base), str(tune(widen, "wide"))).matrices)[DOWN]
    narrow = by_name(weight_delta(str(base), str(tune(lambda t: add(t, DOWN, rank=2), "narrow"))).matrices)[DOWN]
    assert wide.significant == narrow.significant == 2
    assert wide.noise_edge == pytest.approx(narrow.noise_edge)


def test_resized_vocabulary_compares_the_common_rows(base: Path, tune: Tune) -> None:
    def grow(tensors: Tensors) -> None:
        add(tensors, EMBEDDING, rank=1)
        tensors[EMBEDDING] = torch.cat([tensors[EMBEDDING], torch.full((4, 96), 9.0, dtype=torch.bfloat16)])

    matrix = by_name(weight_delta(str(base), str(tune(grow))).matrices)[EMBEDDING]
    assert "resized vocabulary 300 to 304" in matrix.notes[0]
    assert matrix.significant == 1


def test_unembedding_stored_on_one_side_only(base: Path, tune: Tune) -> None:
    untied = tune(lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}))
    assert weight_delta(str(base), str(untied)).notes[0].startswith("identical")
    assert weight_delta(str(untied), str(base)).notes[0].startswith("identical")


def test_shards_are_read_wherever_they_are(base: Path, tune: Tune, tmp_path: Path) -> None:
    tuned = tune(lambda t: add(t, DOWN, rank=2))
    tensors = load_file(tuned / "model.safetensors")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(base / "config.json", sharded)
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    for number, names in enumerate(halves):
        save_file({name: tensors[name] for name in names}, sharded / f"part-{number}.safetensors")
    weight_map = {name: f"part-{number}.safetensors" for number, names in enumerate(halves) for name in names}
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    whole, parts = (weight_delta(str(base), str(folder)) for folder in (tuned, sharded))
    assert [m.record() for m in whole.matrices] == [m.record() for m in parts.matrices]
    (sharded / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"part-1\.safetensors"):
        weight_delta(str(base), str(sharded))
    index.write_text(json.dumps({"weight_map": {DOWN: "../base/model.safetensors"}}))
    with pytest.raises(InputError, match="out of its folder"):
        weight_delta(str(base), str(sharded))


def spoil(tensors: Tensors) -> None:
    tensors[DOWN][3, 5] = float("nan")


def another(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(9)
    for name, value in tensors.items():
        if value.ndim == 2:
            tensors[name] = (torch.randn(value.shape, generator=generator) * 0.02).bfloat16()


REFUSED: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "nan": (spoil, f"{DOWN} holds NaN"),
    "another base": (another, "nothing to do with"),
    "another shape": (lambda t: t.update({DOWN: torch.zeros(96, 16)}), "different architectures"),
    "a weight missing": (lambda t: t.pop(DOWN), "different architectures"),
    "a weight more": (lambda t: t.update({"model.extra.weight": torch.zeros(3, 3)}), "different architectures"),
    "integer weights": (lambda t: t.update({DOWN: torch.zeros(96, 208, dtype=torch.int8)}), "I8"),
    "quantised": (lambda t: t.update({DOWN + ".absmax": torch.zeros(3)}), "quantised checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_by_name(base: Path, tune: Tune, case: str) -> None:
    edit, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        weight_delta(str(base), str(tune(edit)))


def test_damaged_and_pickled_checkpoints_are_refused(base: Path, tune: Tune) -> None:
    tuned = tune(lambda t: None)
    os.truncate(tuned / "model.safetensors", 5000)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        weight_delta(str(base), str(tuned))
    (tuned / "model.safetensors").rename(tuned / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle"):
        weight_delta(str(base), str(tuned))


def test_neither_or_both_of_tuned_and_adapter_are_refused(base: Path) -> None:
    with pytest.raises(InputError, match="one of the two"):
        weight_delta(str(base))
    with pytest.raises(InputError, match="one of the two"):
        weight_delta(str(base), str(base), adapter="x")
