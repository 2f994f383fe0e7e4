"""The leading singular triples of a dense matrix, with a residual for each.

Randomized block Krylov iteration (Halko, Martinsson, Tropp 2011; Musco and Musco 2015) in its residual form: the
basis grows by the residuals of the triples that are not there yet, so that work stops as soon as the bound holds
and goes where it is missed. For a Ritz triple (σ, u, v) with D v = σ u exactly and r = ‖Dᵀu − σ v‖, there is a
singular value of D within r of σ (Weyl), within r²/gap where it is isolated, and the angle to its vector is at most
r/gap.
"""

from dataclasses import dataclass

import torch

GROUNDWORK = 2  # expansions for every triple; only those above the edge get more


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
    return _kept(matrix, left[:, :k], sigma[:k], right[:k].T, sigma[:1])


def top_triples(
    matrix: torch.Tensor, k: int, *, seed: int = 0, edge: float = 0.0, tolerance: float = 1e-3, sweeps: int = 24
) -> Triples:
    """At most k leading triples of `matrix` (float32 [m, n]); fewer where its rank is below k.

    Every triple whose σ is above `edge` has a residual of at most `tolerance` σ (or the rounding floor of float32,
    where that is larger) unless `sweeps` expansions did not suffice: the residuals returned say so. Triples below
    `edge`, which are noise, are good to a few percent. The same seed gives the same result on the same kind of
    machine.
    """
    m, n = matrix.shape
    k = min(k, m, n)
    block = k + 8
    if 3 * block >= min(m, n):
        return full_triples(matrix, k)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    start = torch.randn(m, block, generator=generator).to(matrix)
    basis = _orthonormal(matrix.T @ start)  # [n, b]
    image = matrix @ basis  # [m, b]
    most = min(8 * block, min(m, n))
    for sweep in range(sweeps + 1):
        q, r = torch.linalg.qr(image)
        inner, sigma, outer = torch.linalg.svd(r)
        left, right = q @ inner[:, :k], basis @ outer[:k].T
        remainder = matrix.T @ left - right * sigma[:k]
        residual = torch.linalg.vector_norm(remainder, dim=0)
        floor = torch.finfo(matrix.dtype).eps * max(m, n) ** 0.5 * sigma[0]
        missing = (residual > torch.clamp(tolerance * sigma[:k], min=floor)) & (sigma[:k] > floor)
        if sweep >= GROUNDWORK:
            missing &= sigma[:k] > edge
        if sweep == sweeps or not bool(missing.any()):
            break
        if basis.shape[1] + int(missing.sum()) > most:  # restart from the best vectors: memory stays bounded
            basis, image = basis @ outer[: 2 * block].T, image @ outer[: 2 * block].T
        fresh = _orthonormal(remainder[:, missing], against=basis)
        basis, image = torch.cat([basis, fresh], dim=1), torch.cat([image, matrix @ fresh], dim=1)
    return _kept(matrix, left, sigma[:k], right, sigma[:1], residual)


def _kept(
    matrix: torch.Tensor,
    left: torch.Tensor,
    sigma: torch.Tensor,
    right: torch.Tensor,
    largest: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> Triples:
    """Without the triples that float32 cannot tell from zero, and with signs that do not depend on the method."""
    floor = torch.finfo(matrix.dtype).eps * max(matrix.shape) ** 0.5 * largest
    kept = (sigma > floor) & (sigma > 0)
    left, sigma, right = left[:, kept], sigma[kept], right[:, kept]
    if residual is None:
        residual = torch.linalg.vector_norm(matrix.T @ left - right * sigma, dim=0)
    else:
        residual = residual[kept]
    sign = canonical_signs(left)
    return Triples(
        sigma=sigma,
        left=(left * sign).contiguous(),
        right=(right * sign).contiguous(),
        residual=residual,
    )


def canonical_signs(left: torch.Tensor) -> torch.Tensor:
    """+1 or −1 per column [r]: the entry of largest size becomes positive."""
    if left.shape[1] == 0:
        return left.new_ones(0)
    peak = left.abs().argmax(dim=0)
    return torch.where(left[peak, torch.arange(left.shape[1])] < 0, -1.0, 1.0).to(left)


def _orthonormal(columns: torch.Tensor, against: torch.Tensor | None = None) -> torch.Tensor:
    """An orthonormal basis of `columns`, orthogonal to `against`; twice is enough (Kahan, Parlett)."""
    for _ in range(2):
        if against is not None:
            columns = columns - against @ (against.T @ columns)
        columns = torch.linalg.qr(columns)[0]
    return columns
