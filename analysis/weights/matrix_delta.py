"""What is known of the difference of one weight."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.weights.roles import Role
from store.direction import Direction


@dataclass(frozen=True, kw_only=True)
class MatrixDelta:
    """ΔW of one matrix, [outputs m, inputs n], in its leading singular triples.

    name         of the tensor in the base's checkpoint, with `[e]` for expert e of a stacked tensor
    shape        as stored
    role         what the matrix is for; `role.side` is the side that lives in the residual stream
    sigma        float32 [r], descending; r ≤ the rank asked for
    left, right  float32 [m, r] and [n, r], orthonormal columns
    residual     float32 [r], ‖ΔWᵀu − σ v‖: σ is within it of a singular value of ΔW
    frobenius    ‖ΔW‖_F of what was compared: units in the tuned model's order, pruned entries left out
    relative     ‖ΔW‖_F / ‖W‖_F of the base; None where the base was not read (an adapter)
    noise_edge   the largest singular value that noise alone makes: the rounding of the stored dtype or of a recognised
                 quantisation, the holes of pruned weights; 0 for an adapter
    significant  how many of the triples are above `noise_edge`
    notes        what was recognised: `unchanged`, `rank 8 …`, `resized vocabulary 100 to 104 …`, and the kinds of
                 `analysis.weights.recognise`, each followed by a colon
    moved_rows   of embeddings and unembeddings: (token id, length of its row's change), the largest first
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    sigma: np.ndarray
    left: np.ndarray
    right: np.ndarray
    residual: np.ndarray
    frobenius: float
    relative: float | None
    noise_edge: float
    significant: int
    notes: tuple[str, ...] = ()
    moved_rows: tuple[tuple[int, float], ...] = ()

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖_F² / σ₁²: how many directions of equal strength the change is worth; 0 where ΔW = 0."""
        return self.frobenius**2 / float(self.sigma[0]) ** 2 if len(self.sigma) else 0.0

    @property
    def energy(self) -> float:
        """Share of ‖ΔW‖_F² in the kept triples, in [0, 1]; 0 where ΔW = 0."""
        total = self.frobenius**2
        return min(1.0, float(np.sum(self.sigma.astype(np.float64) ** 2)) / total) if total else 0.0

    def directions(self, source: dict[str, Any]) -> Iterator[Direction]:
        """The residual-stream side of every triple, at the site where the model shows it; none without a site."""
        if self.role.site is None:
            return
        vectors = self.left if self.role.side == "left" else self.right
        for rank in range(len(self.sigma)):
            yield Direction(
                name=f"{self.name}.{self.role.side}.{rank}",
                site=self.role.site,
                vector=vectors[:, rank],
                source={
                    **source,
                    "matrix": self.name,
                    "role": self.role.name,
                    "side": self.role.side,
                    "rank": rank,
                    "sigma": float(self.sigma[rank]),
                    "significant": rank < self.significant,
                },
            )

    def record(self) -> dict[str, Any]:
        """JSON without the vectors."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "sigma": [float(value) for value in self.sigma],
            "stable_rank": self.stable_rank,
            "energy": self.energy,
            "significant": self.significant,
            "side": self.role.side,
            "role": self.role.name,
            "layer": self.role.layer,
            "site": self.role.site,
            "frobenius": self.frobenius,
            "relative": self.relative,
            "noise_edge": self.noise_edge,
            "residual": [float(value) for value in self.residual],
            "notes": list(self.notes),
            "moved_tokens": [{"token_id": token, "change": change} for token, change in self.moved_rows],
        }


@dataclass(frozen=True, kw_only=True)
class VectorDelta:
    """The difference of a norm's or bias's vector: its length, and the same over the base's length where known."""

    name: str
    frobenius: float
    relative: float | None

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "frobenius": self.frobenius, "relative": self.relative}
