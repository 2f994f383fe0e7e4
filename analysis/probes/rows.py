"""Feature rows of one site, read in blocks so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from store.errors import InputError

BLOCK_ROWS = 8192
CACHED_BYTES = 512 << 20  # standardised rows up to this size stay in memory between passes


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a column, and the example that each speaks of.

    site     where they were read, for messages
    source   a store Column or an array [all rows, width…]; trailing dimensions are flattened
    chosen   int64 [n], ascending: which rows of it
    example  int64 [n], not descending: the example of each row. One example has one row or many (its tokens)
    """

    site: str
    source: Any
    chosen: np.ndarray
    example: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def width(self) -> int:
        return int(np.prod(self.source.shape[1:]))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of the rows with their float32 values [b, width]. Raises InputError at NaN or infinity."""
        for start in range(0, len(self), BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, len(self)))
            chosen = self.chosen[part]
            whole = chosen[-1] - chosen[0] == len(chosen) - 1  # reading a range is cheaper than picking rows
            raw = self.source[int(chosen[0]) : int(chosen[-1]) + 1] if whole else self.source[chosen]
            values = np.asarray(raw).astype(np.float32).reshape(len(chosen), -1)
            bad = int((~np.isfinite(values).all(axis=1)).sum())
            if bad:
                raise InputError(
                    f"{bad} rows of {self.site} between {chosen[0]} and {chosen[-1]} hold NaN or infinity: "
                    "harvest in float32 or leave these prompts out with --where"
                )
            yield part, values


@dataclass(frozen=True, kw_only=True)
class Features:
    """Rows on the scale (x - centre) / scale, kept in memory where they are few and read again where not.

    centre, scale: float64 [width]. A feature that never varies has scale infinity, and so is 0.
    """

    rows: Rows
    centre: np.ndarray
    scale: np.ndarray
    _cache: list[tuple[slice, np.ndarray]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return self.rows.width

    @property
    def dtype(self) -> type[np.floating]:
        """float64 where that is affordable: the products of large sets run in float32, their sums in float64."""
        return np.float64 if 8 * len(self) * self.width <= CACHED_BYTES else np.float32

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of the rows with their standardised values [b, width], float64 or float32."""
        if self._cache:
            yield from self._cache
            return
        keep = np.dtype(self.dtype).itemsize * len(self) * self.width <= CACHED_BYTES
        kept: list[tuple[slice, np.ndarray]] = []
        for part, raw in self.rows.blocks():
            values = (raw.astype(self.dtype) - self.centre.astype(self.dtype)) / self.scale.astype(self.dtype)
            if keep:
                kept.append((part, values))
            yield part, values
        self._cache.extend(kept)

    def sample(self, most: int) -> np.ndarray:
        """At most `most` standardised rows, evenly spread: [m, width]."""
        step = max(1, -(-len(self) // most))
        picked = [values[(-part.start) % step :: step] for part, values in self.blocks()]
        return np.concatenate(picked)

    def project(self, weights: np.ndarray, intercepts: np.ndarray, examples: int) -> np.ndarray:
        """Scores of examples, the mean over an example's rows: float64 [examples, columns].

        weights: [width, columns]; intercepts: [columns]. Examples without rows score 0.
        """
        totals = np.zeros((examples, weights.shape[1]))
        for part, values in self.blocks():
            self._add(totals, part, values @ weights.astype(values.dtype))
        return self._means(totals) + intercepts

    def held_out(self, weights: np.ndarray, intercepts: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Scores of every example by the fits without its fold, the mean over its rows: float64 [examples, labels].

        weights: [labels, folds, width]; intercepts: [labels, folds]; folds: int [examples].
        """
        totals = np.zeros((len(folds), len(weights)))
        for part, values in self.blocks():
            scores = np.empty((len(values), len(weights)))
            of_rows = folds[self.rows.example[part]]
            for fold in range(weights.shape[1]):
                scores[of_rows == fold] = values[of_rows == fold] @ weights[:, fold].T.astype(values.dtype)
            self._add(totals, part, scores)
        return self._means(totals) + intercepts.T[folds]

    def _add(self, totals: np.ndarray, part: slice, scores: np.ndarray) -> None:
        """Adds the scores of a block's rows to their examples' totals."""
        owners = self.rows.example[part]
        starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
        totals[owners[starts]] += np.add.reduceat(scores, starts, axis=0)

    def _means(self, totals: np.ndarray) -> np.ndarray:
        counts = np.bincount(self.rows.example, minlength=len(totals))
        return totals / np.maximum(counts, 1)[:, None]
