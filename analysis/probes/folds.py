"""Folds of whole groups, and the sets of folds that each fit leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from store.errors import InputError


def deal_folds(groups: np.ndarray, labels: np.ndarray, *, folds: int, seed: int = 0) -> np.ndarray:
    """The fold of every row: int [n], all rows of a group in one fold.

    groups: string [n]; labels: bool [n]. Groups are dealt like cards in the order of a hash of their name,
    those with one class and those with both apart, so that folds are of like size and composition, do not
    depend on the order of rows, and change with `seed`. Raises InputError where a class has fewer groups than
    folds.
    """
    if folds < 3:
        raise InputError(f"{folds} folds are too few: one measures and one chooses, so give at least 3")
    names, codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    positives, sizes = np.bincount(codes, labels), np.bincount(codes)
    kind = np.where(positives == 0, 0, np.where(positives == sizes, 2, 1))
    for value, holds in (("negative", kind != 2), ("positive", kind != 0)):
        if holds.sum() < folds:
            raise InputError(
                f"the {value} class has {holds.sum()} groups, fewer than {folds} folds: give more groups or fewer "
                "folds (3 at least)"
            )
    salt = seed.to_bytes(8, "little", signed=True)
    digests = [blake2b(name.encode(), digest_size=8, salt=salt).digest() for name in names.tolist()]
    order = np.lexsort((np.array([int.from_bytes(digest) for digest in digests], np.uint64), kind))
    fold_of_group = np.empty(len(names), np.int64)
    fold_of_group[order] = np.arange(len(names)) % folds
    return fold_of_group[codes]


@dataclass(frozen=True)
class LeaveOut:
    """What is left out of training: each fold alone, and each pair of folds.

    The model without folds k and j serves twice: scored on j it helps to choose what fold k measures, and
    with a threshold set on j it is measured on k. Neither looks at k.
    """

    folds: int
    pairs: bool = True

    @cached_property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The folds that each fit leaves out: singles first, so that set k leaves out fold k alone."""
        singles: list[tuple[int, ...]] = [(k,) for k in range(self.folds)]
        both: list[tuple[int, ...]] = [(k, j) for k in range(self.folds) for j in range(k + 1, self.folds)]
        return tuple(singles + both if self.pairs else singles)

    @cached_property
    def trains(self) -> np.ndarray:
        """bool [sets, folds]: does the fit train on the fold?"""
        trains = np.ones((len(self.sets), self.folds), bool)
        for index, left_out in enumerate(self.sets):
            trains[index, list(left_out)] = False
        return trains

    @cached_property
    def without(self) -> np.ndarray:
        """int [folds, folds]: the set that leaves out k and j; on the diagonal the one that leaves out k alone."""
        index = {left_out: number for number, left_out in enumerate(self.sets)}
        return np.array(
            [
                [index[tuple(sorted({k, j}))] if self.pairs or k == j else -1 for j in range(self.folds)]
                for k in range(self.folds)
            ]
        )
