"""Clean prompts as monitors see them: their extremes, drawn from distributions that are known."""

from typing import Any

import numpy as np

from analysis.monitors import Scorer
from store.direction import Direction


def scorer(t: int, **more: Any) -> Scorer:
    return Scorer(directions=tuple(directions(t)), **more)


def directions(t: int) -> list[Direction]:
    return [
        Direction(
            name=f"model.layers.{i}.mlp.down_proj.weight.left.0",
            site=f"resid_post.{i}",
            vector=np.eye(8, dtype=np.float32)[i % 8],
            source={"role": "down", "side": "left", "significant": i % 2 == 0},
        )
        for i in range(t)
    ]


def heavy(rng: np.random.Generator, n: int, t: int) -> np.ndarray:
    """Extremes with unequal scales, heavy tails and a factor common to all directions."""
    common = rng.standard_normal((n, 1, 1))
    return (rng.standard_t(4, (n, t, 2)) + common) * np.linspace(0.1, 3, t)[None, :, None] + 5


def names(n: int) -> np.ndarray:
    return np.array([f"p{i}" for i in range(n)])
