"""The iteration against LAPACK in float64."""

import numpy as np
import pytest
import torch

from analysis.weights.svd import full_triples, top_triples


def spectrum(m: int, n: int, sigma: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, len(sigma), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, len(sigma), generator=generator, dtype=torch.float64))[0]
    return ((left * sigma) @ right.T).float()


# name -> rows, columns, spectrum, triples that have a gap after them
CASES = {
    "low rank and noise": (400, 900, torch.cat([torch.linspace(9, 2, 12), torch.full((380,), 0.05)]).double(), 12),
    "slow decay": (700, 300, (torch.arange(1, 301, dtype=torch.float64)) ** -0.5, 20),
    "nearly equal": (500, 450, torch.cat([torch.linspace(1.02, 1.0, 20), torch.linspace(0.9, 0.1, 400)]).double(), 20),
    "one huge": (300, 600, torch.cat([torch.tensor([1000.0]), torch.linspace(2, 0.01, 299)]).double(), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_triples_agree_with_the_full_decomposition(name: str) -> None:
    m, n, sigma, apart = CASES[name]
    matrix = spectrum(m, n, sigma)
    got = top_triples(matrix, 20)
    left, exact, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = len(got.sigma)
    assert kept == 20
    assert torch.allclose(got.sigma.double(), exact[:kept], rtol=1e-4)
    for ours, theirs in ((got.left[:, :apart], left[:, :apart]), (got.right[:, :apart], right[:apart].T)):
        angle = torch.linalg.svdvals(ours.double() - theirs @ (theirs.T @ ours.double()))[0]  # sine of the largest
        assert angle < 0.01
    assert torch.allclose(got.left.T @ got.left, torch.eye(20), atol=1e-5)
    floor = torch.finfo(torch.float32).eps * max(m, n) ** 0.5 * got.sigma[0]
    assert (got.residual <= torch.clamp(1.1e-3 * got.sigma, min=floor)).all()


def test_the_residual_is_what_it_says() -> None:
    matrix = spectrum(*CASES["slow decay"][:3])
    got = top_triples(matrix, 5, sweeps=1)  # not converged: residuals must own up to it
    exact = torch.linalg.vector_norm(
        matrix.double().T @ got.left.double() - got.right.double() * got.sigma.double(), dim=0
    )
    assert torch.allclose(got.residual.double(), exact, rtol=1e-3)
    nearest = torch.linalg.svdvals(matrix.double())
    assert all((nearest - s).abs().min() <= r * 1.001 for s, r in zip(got.sigma.double(), exact, strict=True))
    assert got.residual.max() > 1e-3 * got.sigma[0]


def test_rank_below_k_gives_fewer_triples() -> None:
    matrix = spectrum(300, 500, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    for triples in (top_triples(matrix, 20), full_triples(matrix, 20)):
        np.testing.assert_allclose(triples.sigma, [3, 2, 1], rtol=1e-5)
        assert triples.left.shape == (300, 3)
        assert triples.right.shape == (500, 3)


def test_methods_agree_in_sign_and_repeat() -> None:
    matrix = spectrum(*CASES["low rank and noise"][:3])
    again, fast, full = top_triples(matrix, 8), top_triples(matrix, 8), full_triples(matrix, 8)
    assert torch.equal(again.left, fast.left)
    assert torch.allclose(fast.left, full.left, atol=1e-2)
    assert torch.allclose(fast.right, full.right, atol=1e-2)


def test_a_rank_far_below_k_makes_no_triple_of_rounding() -> None:
    """The iteration runs out of space: what is left outside of its basis is rounding, again and again."""
    generator = torch.Generator().manual_seed(3)
    for m, n, rank, k in ((192, 196, 1, 32), (300, 320, 8, 20), (110, 300, 3, 32), (576, 576, 7, 20)):
        matrix = torch.zeros(m, n)
        matrix[:rank] = 0.01 * torch.randn(rank, n, generator=generator)
        for seed in range(6):
            got = top_triples(matrix, k, seed=seed)
            exact = torch.linalg.svdvals(matrix.double())
            assert torch.allclose(got.sigma[:rank].double(), exact[:rank], rtol=1e-4)
            assert (got.sigma[rank:] < 1e-4 * got.sigma[0]).all()
            assert torch.allclose(got.right.T @ got.right, torch.eye(len(got.sigma)), atol=1e-3)


def test_nearly_all_columns_are_there_to_be_found() -> None:
    """Fewer columns than the basis would hold, and no multiple of a block."""
    matrix = torch.randn(110, 3000, generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        got = top_triples(matrix, 32, seed=seed)
        assert torch.allclose(got.sigma.double(), torch.linalg.svdvals(matrix.double())[:32], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e15, 1e30])
def test_size_does_not_matter(scale: float) -> None:
    matrix = spectrum(*CASES["low rank and noise"][:3])
    plain, scaled = top_triples(matrix, 12, edge=0.1), top_triples(matrix * scale, 12, edge=0.1 * scale)
    assert torch.allclose(scaled.sigma.double() / scale, plain.sigma.double(), rtol=1e-4)
    assert torch.allclose(scaled.left.abs(), plain.left.abs(), atol=1e-2)
