"""The leading singular triples of a dense matrix, with a residual for each.

Block Lanczos iteration on DᵀD with full reorthogonalisation, from a random start (Golub, Underwood 1977; Musco and
Musco 2015; thick restarts as Wu and Simon 2000). For a Ritz triple (σ, u, v) with D v = σ u exactly and
r = ‖Dᵀu − σ v‖, there is a singular value of D within r of σ (Weyl), within r²/gap where it is isolated, and the
angle to its vector is at most r/gap. The iteration itself tells r, so that work stops as soon as the bound holds; the
triples returned are formed anew from D, and their r is measured on D.
"""

import math
from dataclasses import dataclass, replace

import torch

BLOCK = 16  # columns of one expansion: a large matrix is read from memory about as fast for sixteen as for one
SMALL_BLOCK = 8  # in a cache they cost what they are worth, and narrow blocks need a smaller basis
SMALL = 96  # rows or columns up to which LAPACK's full decomposition is as fast
SQUARED = 1024  # rows or columns up to which a matrix that takes long is squared: the rest costs next to nothing
SMALLEST, LARGEST = 1e-9, 1e9  # largest entry of a matrix that is decomposed as it stands
PROJECTIONS = 5
SKEW = 1e-4  # cosine between vectors that should be orthogonal
DIGITS = 0.05  # σ / σ₁ that a squared float32 matrix still gives to 1e-5


@dataclass(frozen=True, kw_only=True)
class Triples:
    """Singular triples of an [m, n] matrix, largest first.

    sigma     float32 [r]
    left      float32 [m, r], orthonormal columns
    right     float32 [n, r], orthonormal columns
    residual  float32 [r], ‖Dᵀu − σ v‖
    """

    sigma: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    residual: torch.Tensor


def full_triples(matrix: torch.Tensor, k: int) -> Triples:
    """The top k triples out of LAPACK's full decomposition; triples of a singular value of zero are left out."""
    left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
    left, sigma, right = left[:, :k], sigma[:k], right[:k].T
    return _kept(matrix, left, sigma, right, torch.linalg.vector_norm(matrix.T @ left - right * sigma, dim=0))


def top_triples(
    matrix: torch.Tensor, k: int, *, seed: int = 0, edge: float = 0.0, tolerance: float = 1e-3, sweeps: int = 96
) -> Triples:
    """At most k leading triples of `matrix` (float32 [m, n]); fewer where its rank is below k.

    Every triple whose σ is above `edge` has a residual of at most `tolerance` σ (or the rounding floor of float32,
    where that is larger) unless `sweeps` expansions did not suffice: the residuals returned say so. Triples below
    `edge`, which are noise, are good to a few percent. Of a singular value that occurs more often than a block has
    columns, to the last bit, only as many may be found as it has. The same seed gives the same result on the same kind
    of machine.
    """
    m, n = matrix.shape
    k = min(k, m, n)
    if min(m, n) <= max(SMALL, 3 * k):
        return full_triples(matrix, k)
    largest = float(matrix.abs().max())
    if largest > 0 and not SMALLEST < largest < LARGEST:
        # squares of such values leave float32
        factor = 2.0 ** -math.frexp(largest)[1]
        found = top_triples(matrix * factor, k, seed=seed, edge=edge * factor, tolerance=tolerance, sweeps=sweeps)
        return replace(found, sigma=found.sigma / factor, residual=found.residual / factor)
    tall = matrix if m >= n else matrix.T
    right = _subspace(tall, k, seed=seed, edge=edge, tolerance=tolerance, sweeps=sweeps)
    if bool((right.T @ right - torch.eye(right.shape[1]).to(right)).abs().max() > SKEW):
        return full_triples(matrix, k)  # of a rank far below k the iteration sees rounding alone in the end
    image = tall @ right
    # The squares of σ are taken in float64: in float32 they would have half of its digits.
    square, inner = torch.linalg.eigh(image.double().T @ image.double())
    sigma = square.flip(0)[:k].clamp_min(0).sqrt().to(matrix)
    inner = inner.flip(1)[:, :k].to(matrix)
    left, right = image @ inner / sigma.clamp_min(torch.finfo(matrix.dtype).tiny), right @ inner
    residual = torch.linalg.vector_norm(tall.T @ left - right * sigma, dim=0)
    return _kept(matrix, *((left, sigma, right) if m >= n else (right, sigma, left)), residual)


def _subspace(tall: torch.Tensor, k: int, *, seed: int, edge: float, tolerance: float, sweeps: int) -> torch.Tensor:
    """Orthonormal columns that span the leading right vectors of `tall` ([m, n], m ≥ n) and some more."""
    n = tall.shape[1]
    block = SMALL_BLOCK if n <= SQUARED else BLOCK
    most = min(16 * BLOCK + 2 * k, n - block)  # beside it there is room for a whole block
    basis = tall.new_empty(n, most)
    projected = torch.zeros(most, most, dtype=torch.float64)  # basisᵀ DᵀD basis
    generator = torch.Generator(device="cpu").manual_seed(seed)
    fresh = torch.linalg.qr(torch.randn(n, block, generator=generator).to(tall))[0]
    square: torch.Tensor | None = None
    size, check, before = 0, 1 + -(-k // block), (0, 1.0)
    for sweep in range(1, sweeps + 1):
        start, size = size, size + block
        basis[:, start:size] = fresh
        image = tall.T @ (tall @ fresh) if square is None else square @ fresh
        projected[:size, start:size] = (basis[:, :size].T @ image).double().cpu()
        projected[start:size, :start] = projected[:start, start:size].T
        fresh, coupling = _next_block(image, basis[:, :size])
        if sweep < min(check, sweeps) and size + block <= most:
            continue
        values, vectors = torch.linalg.eigh(projected[:size, :size].to(torch.float64 if square is None else tall.dtype))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        sigma = values[:k].sqrt()
        floor = torch.finfo(tall.dtype).eps * tall.shape[0] ** 0.5 * sigma[0]
        wanted = sigma > max(edge, float(floor))
        # ‖DᵀD v − σ² v‖ is σ times the residual of the triple
        residual = torch.linalg.vector_norm(coupling.cpu().to(vectors) @ vectors[start:size, :k], dim=0) / sigma
        excess = float((residual / (tolerance * sigma).clamp_min(floor))[wanted].max()) if wanted.any() else 0.0
        if sweep == sweeps or excess <= 1:
            break
        check, before = _next_check(sweep, excess, *before), (sweep, excess)
        if square is None and n <= SQUARED and check > sweep + 1 and float(sigma[wanted].min() / sigma[0]) > DIGITS:
            square = tall.T @ tall
        if size + block > most:  # restart from the best vectors: memory stays bounded
            size = 2 * k
            basis[:, :size] = basis[:, : len(vectors)] @ vectors[:, :size].to(basis)
            projected[:size, :size] = torch.diag(values[:size])
    return basis[:, : len(vectors)] @ vectors[:, : k + 8].to(basis)


def _kept(
    matrix: torch.Tensor,
    left: torch.Tensor,
    sigma: torch.Tensor,
    right: torch.Tensor,
    residual: torch.Tensor,
) -> Triples:
    """Without the triples that float32 cannot tell from zero, and with signs that do not depend on the method."""
    floor = torch.finfo(matrix.dtype).eps * max(matrix.shape) ** 0.5 * sigma[:1]
    kept = (sigma > floor) & (sigma > 0)
    left, sigma, right = left[:, kept], sigma[kept], right[:, kept]
    sign = canonical_signs(left)
    return Triples(
        sigma=sigma,
        left=(left * sign).contiguous(),
        right=(right * sign).contiguous(),
        residual=residual[kept],
    )


def canonical_signs(left: torch.Tensor) -> torch.Tensor:
    """+1 or −1 per column [r]: the entry of largest size becomes positive."""
    if left.shape[1] == 0:
        return left.new_ones(0)
    peak = left.abs().argmax(dim=0)
    return torch.where(left[peak, torch.arange(left.shape[1])] < 0, -1.0, 1.0).to(left)


def _next_check(sweep: int, excess: float, last: int, last_excess: float) -> int:
    """The expansion after which the bound should hold if residuals go on falling as since the last look.

    At most half as many again as so far: residuals fall faster in the end than in the beginning.
    """
    fall = math.log(max(last_excess / excess, 1.01)) / (sweep - last)
    return sweep + max(1, min(math.ceil(math.log(excess) / fall), sweep // 2))


def _next_block(image: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An orthonormal basis [n, b] of what `image` has outside of `basis`, and `image` in it ([b, b]).

    Projected until that takes nothing away any more, the columns of length 1 each time. Twice is the rule (Kahan,
    Parlett); where nothing is left outside, what stands there is rounding, and it takes longer.
    """
    fresh, inside = image, torch.eye(image.shape[1]).to(image)
    for _ in range(PROJECTIONS):
        fresh, triangle = torch.linalg.qr(fresh - basis @ (basis.T @ fresh))
        inside = triangle @ inside
        if bool((triangle.diagonal().abs() - 1).abs().max() < 0.1):
            break
    return fresh, inside
