"""Many p-values at once: family-wise error and false discoveries. All take and give float [m] in the same order."""

from __future__ import annotations

import numpy as np


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that hold the family-wise error whatever the dependence. Holm, Scand. J. Stat. 6 (1979) 65."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _in_order(np.minimum(steps, 1), order)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that hold the false discovery rate under independence or positive dependence.

    Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995) 289.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    steps = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _in_order(np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1), order)


def benjamini_yekutieli(p: np.ndarray) -> np.ndarray:
    """The same under any dependence, larger by the harmonic number. Ann. Stat. 29 (2001) 1165."""
    harmonic = np.sum(1 / np.arange(1, len(p) + 1))
    p = np.asarray(p, float)
    order = np.argsort(p)
    steps = p[order] * len(p) * harmonic / np.arange(1, len(p) + 1)
    return _in_order(np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1), order)


def _in_order(sorted_values: np.ndarray, order: np.ndarray) -> np.ndarray:
    values = np.empty_like(sorted_values)
    values[order] = sorted_values
    return values
