"""Labels as they could have been if they had nothing to do with the features, and what follows from them."""

from __future__ import annotations

import numpy as np


def shuffled_labels(labels: np.ndarray, groups: np.ndarray, *, shuffles: int, seed: int) -> np.ndarray:
    """Labels exchanged as the design allows: bool [n, shuffles].

    labels: bool [n]; groups: int or string [n]. Within a group whose labels vary they are permuted among its
    rows; groups of a single label exchange theirs with one another, whole. What rows of a group share is so
    never mistaken for an effect of the label (Good 2005, Permutation, Parametric and Bootstrap Tests, chapter
    7).
    """
    labels = np.asarray(labels, bool)
    generator = np.random.default_rng(seed)
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    positives, sizes = np.bincount(codes, labels), np.bincount(codes)
    constant = (positives == 0) | (positives == sizes)
    varying_rows = np.flatnonzero(~constant[codes])
    grouped = varying_rows[np.argsort(codes[varying_rows], kind="stable")]
    made = np.empty((len(labels), shuffles), bool)
    for number in range(shuffles):
        new = np.empty(len(labels), bool)
        group_labels = np.zeros(len(names), bool)
        group_labels[constant] = generator.permutation(positives[constant] > 0)
        new[:] = group_labels[codes]
        order = np.lexsort((generator.random(len(grouped)), codes[grouped]))  # random order within each group
        new[grouped] = labels[grouped[order]]
        made[:, number] = new
    return made


def max_statistic_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """P-values adjusted for having searched: float64, the shape of `observed`.

    observed: float [searched]; null: float [shuffles, searched], the same statistics under shuffled labels.
    The share of shuffles whose largest statistic reaches the observed one, counting the observed labelling
    itself: Westfall and Young 1993; Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.
    """
    largest = null.max(axis=1)
    reached = (largest[:, None] >= np.asarray(observed)[None]).sum(axis=0)
    return (1 + reached) / (1 + len(null))
