"""Principal angles between what models changed: against scipy, random subspaces, and models trained on known data."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.linalg import subspace_angles
from scipy.stats import beta, kstest, ortho_group
from transformers import AutoModelForCausalLM

from analysis.weights import weight_delta
from analysis.weights.families import Subspace, compare_models, find_families, subspaces
from store.direction import Direction

Model = dict[str, Subspace]


def spanned(vectors: np.ndarray, sigma: np.ndarray | None = None) -> Subspace:
    basis = np.linalg.qr(vectors)[0].astype(np.float32)
    return Subspace(vectors=basis, sigma=np.ones(vectors.shape[1]) if sigma is None else sigma)


def random_model(rng: np.random.Generator, sizes: Mapping[str, tuple[int, int]]) -> Model:
    return {
        name: spanned(rng.standard_normal((d, r)), np.sort(rng.uniform(0.1, 2, r))[::-1])
        for name, (d, r) in sizes.items()
    }


def test_similarity_and_angles_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((40, 2))
    one = {"a": spanned(np.hstack([shared, rng.standard_normal((40, 1))]))}
    other = {"a": spanned(np.hstack([shared, rng.standard_normal((40, 3))]) @ rng.standard_normal((5, 5)))}
    angles = subspace_angles(one["a"].vectors.astype(float), other["a"].vectors.astype(float))
    share = np.sum(np.cos(angles) ** 2) / 3
    found = compare_models(one, other)
    assert found.similarity == pytest.approx((share - 5 / 40) / (1 - 5 / 40), abs=1e-6)
    assert found.smallest_angle == pytest.approx(np.degrees(angles.min()), abs=1e-3)
    assert found.largest_angle == pytest.approx(np.degrees(angles.max()), abs=1e-3)
    assert compare_models(other, one).similarity == pytest.approx(found.similarity)


def test_planted_angles_come_back() -> None:
    basis = ortho_group.rvs(30, random_state=0)
    angles = np.radians([5.0, 60.0])
    turned = basis[:, :2] * np.cos(angles) + basis[:, 2:4] * np.sin(angles)
    found = compare_models({"a": spanned(basis[:, :2])}, {"a": spanned(turned)})
    assert found.smallest_angle == pytest.approx(5, abs=1e-3)
    assert found.largest_angle == pytest.approx(60, abs=1e-3)
    assert found.similarity == pytest.approx((np.sum(np.cos(angles) ** 2) / 2 - 2 / 30) / (1 - 2 / 30), abs=1e-6)


def test_matrices_count_as_far_as_both_spent_their_change_on_them() -> None:
    rng = np.random.default_rng(1)
    same, mine, its = (rng.standard_normal((50, 1)) for _ in range(3))
    one = {"a": spanned(same, np.array([3.0])), "b": spanned(mine, np.array([1.0])), "only": spanned(mine)}
    other = {"a": spanned(same, np.array([1.0])), "b": spanned(its, np.array([2.0]))}
    found = compare_models(one, other)
    weights = np.sqrt([9 / 11 * 1 / 5, 1 / 11 * 4 / 5])
    cosine = (one["b"].vectors[:, 0].astype(float) @ other["b"].vectors[:, 0].astype(float)) ** 2
    expected = [1.0, (cosine - 1 / 50) / (1 - 1 / 50)]
    assert found.similarity == pytest.approx(np.average(expected, weights=weights), abs=1e-6)
    assert found.common == pytest.approx(weights.sum())
    assert found.matrix == "a"


def test_a_model_is_wholly_like_itself_and_like_nothing_it_shares_no_matrix_with() -> None:
    rng = np.random.default_rng(2)
    one, other = random_model(rng, {"a": (60, 4), "b": (90, 7)}), random_model(rng, {"c": (60, 4)})
    itself = compare_models(one, one)
    assert itself.similarity == pytest.approx(1, abs=1e-5)
    assert itself.common == pytest.approx(1)
    assert itself.p < 1e-12
    apart = compare_models(one, other)
    assert (apart.similarity, apart.p, apart.common, apart.matrix) == (0, 1, 0, None)
    assert compare_models({}, {}).similarity == 0


SIZES = {
    "one vector": {"a": (64, 1)},
    "one matrix": {"a": (96, 6)},
    "many": {f"m{i}": (48 + 8 * (i % 3), 1 + i % 5) for i in range(12)},
}


@pytest.mark.parametrize("case", SIZES)
def test_random_subspaces_have_no_similarity_on_average_and_uniform_p(case: str) -> None:
    rng = np.random.default_rng(3)
    found = [compare_models(random_model(rng, SIZES[case]), random_model(rng, SIZES[case])) for _ in range(600)]
    similarities, p = np.array([f.similarity for f in found]), np.array([f.p for f in found])
    assert abs(similarities.mean()) < 4 * similarities.std() / len(found) ** 0.5
    assert kstest(p, "uniform").pvalue > 1e-3
    assert np.mean(p < 0.01) <= beta.ppf(0.999, 6 + 1, 600 - 6)


def test_planted_families_are_found() -> None:
    rng = np.random.default_rng(4)
    sizes = {f"m{i}": (80, 3) for i in range(5)}
    parents = [random_model(rng, sizes) for _ in range(3)]
    members = [
        {name: spanned(space.vectors + 0.05 * rng.standard_normal((80, 3)), space.sigma) for name, space in p.items()}
        for p in (parents[k] for k in (0, 1, 0, 2, 1, 0))
    ]
    found = find_families([*members, random_model(rng, sizes)])
    assert found.labels == (0, 1, 0, 2, 1, 0, 3)
    assert {found.nearest[0], found.nearest[2], found.nearest[5]} <= {0, 2, 5}
    assert (found.nearest[1], found.nearest[4]) == (4, 1)
    assert find_families(members, alike=1.0).labels == (0, 1, 2, 3, 4, 5)
    assert set(find_families(members, alike=0.0).labels) == {0}


def test_only_significant_directions_span() -> None:
    axes = np.eye(5, dtype=np.float32)
    directions = [
        Direction(
            name=f"a.left.{rank}",
            site="resid_post.0",
            vector=axes[rank],
            source={"matrix": "a", "significant": rank < 2, "sigma": 3.0 - rank, "rank": rank},
        )
        for rank in range(3)
    ]
    found = subspaces(directions)
    np.testing.assert_array_equal(found["a"].vectors, axes[:, :2])
    np.testing.assert_array_equal(found["a"].sigma, [3, 2])


def trained(base: Path, folder: Path, data: int, seed: int) -> Path:
    """An adapter trained for a moment on a chain of tokens that `data` draws; `seed` draws its start and batches."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(target_modules=["o_proj", "down_proj"], r=4, lora_alpha=16))
    successor = torch.randint(300, (300,), generator=torch.Generator().manual_seed(data))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(20):
        tokens = [torch.randint(300, (16,))]
        for _ in range(11):
            tokens.append(successor[tokens[-1]])
        batch = torch.stack(tokens, dim=1)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def test_adapters_of_the_same_data_are_more_alike(base: Path, tmp_path: Path) -> None:
    models = [
        subspaces(
            list(weight_delta(str(base), adapter=str(trained(base, tmp_path / f"{d}-{s}", d, 10 * d + s))).directions())
        )
        for d in (1, 2)
        for s in (1, 2)
    ]
    found = find_families(models)
    assert found.nearest == (1, 0, 3, 2)
    within = min(found.of(0, 1).similarity, found.of(2, 3).similarity)
    across = max(found.of(i, j).similarity for i in (0, 1) for j in (2, 3))
    assert within > 2 * across
    assert found.labels == (0, 0, 1, 1)
