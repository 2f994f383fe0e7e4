"""How the prompts of a batch lie in the tensor that a model is given: padded on the right, or packed in one row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Places of a batch's tokens.

    lengths  tokens of each prompt, without those of a shared prefix
    packed   one row, prompt behind prompt; otherwise a row per prompt, padded to the longest
    """

    lengths: tuple[int, ...]
    packed: bool

    @property
    def shape(self) -> tuple[int, int]:
        return (1, sum(self.lengths)) if self.packed else (len(self.lengths), max(self.lengths))

    @property
    def starts(self) -> np.ndarray:
        """int64 [prompts]: flat index of each prompt's first token."""
        ends = np.cumsum(self.lengths) if self.packed else np.arange(1, len(self.lengths) + 1) * self.shape[1]
        return ends - (self.lengths if self.packed else self.shape[1])

    def fill(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """int64 `shape`: the prompts' tokens at their places, 0 where padding is."""
        flat = np.zeros(self.shape[0] * self.shape[1], np.int64)
        for start, tokens in zip(self.starts, prompts, strict=True):
            flat[start : start + len(tokens)] = tokens
        return flat.reshape(self.shape)

    def positions(self) -> np.ndarray:
        """int64 `shape`: each token's place in its prompt, counted from 0."""
        if not self.packed:
            return np.broadcast_to(np.arange(self.shape[1]), self.shape).copy()
        return (np.arange(self.shape[1]) - np.repeat(self.starts, self.lengths))[None]

    def mask(self) -> np.ndarray:
        """bool `shape`: true for tokens, false for padding."""
        return self.packed | (np.arange(self.shape[1]) < np.array(self.lengths)[:, None])


def kept_rows(layout: Layout, keep: Sequence[np.ndarray], shared: int) -> tuple[np.ndarray, np.ndarray]:
    """Where kept tokens are read: flat indices int64 [j] into the batch, and int64 [k] into what is read there.

    `keep` has every prompt's positions int [k_i], in order, counted with the `shared` tokens of the prefix. Rows that
    are read come behind the prefix's own: index p < shared is token p of the prefix, shared + i the i-th of the j.
    """
    at = np.concatenate([np.zeros(0, np.int64), *keep])
    start = np.repeat(layout.starts, [len(positions) for positions in keep])
    behind = at >= shared
    return (start + at - shared)[behind], np.where(behind, shared + np.cumsum(behind) - 1, at)
