"""Scores of one unit's tokens, collected batch by batch: put into the unit's order, or reduced to a row per prompt."""

from dataclasses import dataclass, field

import numpy as np

from store.errors import InputError

REDUCTIONS = ("none", "max", "mean")


def rows_kind(reduce: str) -> str:
    """What a row speaks of: `token` without a reduction, otherwise `prompt`. Raises InputError for an unknown one."""
    if reduce not in REDUCTIONS:
        raise InputError(f"unknown reduction of scores {reduce!r}: use {', '.join(REDUCTIONS)}")
    return "token" if reduce == "none" else "prompt"


@dataclass(kw_only=True)
class ScoreRows:
    """Scores [rows, *width] of a unit of `prompts` prompts; a prompt without rows is NaN where it is reduced."""

    reduce: str
    prompts: int
    width: tuple[int, ...] = ()
    _prompt: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    _scores: list[np.ndarray] = field(default_factory=list, init=False, repr=False)

    def add(self, prompt: np.ndarray, scores: np.ndarray) -> None:
        """The rows of a batch: those of one prompt are consecutive, and in one batch."""
        if self.reduce != "none" and len(prompt):
            starts = np.flatnonzero(np.diff(prompt, prepend=-1))
            counts = np.diff(starts, append=len(prompt)).reshape(-1, *[1] * len(self.width))
            wide = scores.astype(np.float64)
            most, total = np.maximum.reduceat(wide, starts), np.add.reduceat(wide, starts)
            prompt, scores = prompt[starts], most if self.reduce == "max" else total / counts
        self._prompt.append(prompt.copy())
        self._scores.append(scores)

    def assembled(self) -> np.ndarray:
        """All rows in the order of prompts, or one row per prompt."""
        prompt = np.concatenate([np.zeros(0, np.int32), *self._prompt])
        scores = np.concatenate([np.zeros((0, *self.width), np.float32), *self._scores])
        if self.reduce == "none":
            return np.asarray(scores[np.argsort(prompt, kind="stable")])
        values = np.full((self.prompts, *self.width), np.nan)
        values[prompt] = scores
        return values
