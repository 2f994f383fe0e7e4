"""Rows of one unit, collected batch by batch and put into the unit's order at its end."""

from collections import deque
from collections.abc import Mapping

import numpy as np
import torch

from harvest.host_copy import HostCopy

# Batches whose copies may be under way while the next ones are in the model.
IN_FLIGHT = 2


class UnitRows:
    """Keeps the rows of several columns, on the host, until a unit is finished.

    Batches come in any order of prompts; rows of one prompt come together and in order. Memory is the unit's rows,
    once more while a column is put together; of it, at most the rows of `IN_FLIGHT` batches are pinned.
    """

    def __init__(self) -> None:
        self._prompts: list[np.ndarray] = []
        self._parts: dict[str, list[np.ndarray]] = {}
        self._flying: deque[dict[str, HostCopy]] = deque()

    def add(self, prompt: np.ndarray, columns: Mapping[str, torch.Tensor]) -> None:
        """`prompt` [rows] says which row of the unit each of the columns' rows [rows, width…] speaks of.

        The tensors may be on any device, and are the caller's again when this returns.
        """
        self._prompts.append(prompt)
        self._flying.append({name: HostCopy(values) for name, values in columns.items()})
        self._land(IN_FLIGHT)

    def _land(self, flying: int) -> None:
        """Takes copies in until only so many are under way."""
        while len(self._flying) > flying:
            for name, copied in self._flying.popleft().items():
                self._parts.setdefault(name, []).append(copied.numpy())

    def assembled(self) -> dict[str, np.ndarray]:
        """Every column's rows in order of prompts."""
        self._land(0)
        order = np.concatenate(self._prompts)
        place = np.empty(len(order), np.int64)
        place[np.argsort(order, kind="stable")] = np.arange(len(order))
        return {name: self._scattered(name, place, len(order)) for name in list(self._parts)}

    def assembled_per_prompt(self, n_prompts: int) -> dict[str, np.ndarray]:
        """The same where every prompt has one row: [n_prompts, width…], NaN for a prompt without one."""
        self._land(0)
        place = np.concatenate(self._prompts).astype(np.int64)
        return {name: self._scattered(name, place, n_prompts) for name in list(self._parts)}

    def _scattered(self, name: str, place: np.ndarray, n: int) -> np.ndarray:
        """Lets every batch's rows go once they are copied to their place."""
        parts = self._parts.pop(name)
        values = np.empty((n, *parts[0].shape[1:]), parts[0].dtype)
        if len(place) < n:
            values[:] = np.nan
        done = 0
        parts.reverse()
        while parts:
            part = parts.pop()
            values[place[done : done + len(part)]] = part
            done += len(part)
        return values
