"""Which rows of a column speak of which prompts, tokens, labels and groups.

Found from the prompt set and the token tables, never from the column itself: only the chunks that hold the rows are
read afterwards. Rows of one prompt are consecutive, so a prompt no longer than a chunk takes two chunk reads at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from store.cell import read_tokens
from store.column import Column
from store.errors import InputError
from store.store import Store
from store.unit import Unit


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """Row numbers of `column`, int64, to index it with: `column[selection.of_prompts(["p7"])]`.

    The token table of a unit is read when one of its prompts is first asked for; 8 bytes a prompt are kept of it.
    """

    store: Store
    column: Column

    def __post_init__(self) -> None:
        if self.column.rows == "unit":
            raise InputError(
                f"column {self.column.name!r} speaks of whole units: no row of it is a prompt's or token's"
            )

    def of_prompts(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Rows of these prompts, one prompt after the other in the order given, each in order of position.

        A prompt of which nothing was selected has none. Raises InputError for an id that is not in the prompt set,
        or whose unit the column lacks.
        """
        unknown = next((identity for identity in prompt_ids if identity not in self._numbers), None)
        if unknown is not None:
            raise InputError(
                f"{self.store.path} has no prompt {unknown!r}: prompt ids are strings, as in the prompt set"
            )
        return self.of_prompt_rows(np.array([self._numbers[identity] for identity in prompt_ids], dtype=np.int64))

    def where(self, name: str, value: Any) -> np.ndarray:
        """Rows of the prompts whose `name` (a label, `group` or any other column) is `value`, or one of a list.

        None stands for prompts without one. Raises InputError for a value that the column's type does not have.
        """
        wanted = list(value) if isinstance(value, (list, tuple, set, frozenset, np.ndarray)) else [value]
        self.store.prompts.labels(name)  # refuses an unknown column
        column = self.store.prompts.table.column(name)
        try:
            values = pa.array(wanted, column.type)
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(f"{name!r} is of type {column.type}, and {value!r} is not: no prompt has it") from error
        matches = pa.compute.is_in(column, value_set=values).to_numpy(zero_copy_only=False)
        held = [np.arange(unit.start, unit.stop) for unit in self._units]
        return self.of_prompt_rows(np.concatenate([rows[matches[rows]] for rows in held]))

    def of_tokens(self, token_ids: Sequence[int]) -> np.ndarray:
        """Rows whose token is one of `token_ids`, ascending. Reads every token table, one unit at a time."""
        if self.column.rows != "token":
            raise InputError(f"rows of {self.column.name!r} speak of prompts, not tokens: select prompts instead")
        wanted = np.array(list(token_ids), dtype=np.int64)
        found, first = [np.empty(0, np.int64)], 0
        for receipt in self.column.receipts:
            tokens = read_tokens(self.store.location, receipt)
            selected = tokens.column("selected").to_numpy(zero_copy_only=False)
            ids = tokens.column("token_id").to_numpy()[selected]
            found.append(np.flatnonzero(np.isin(ids, wanted)) + first)
            first += ids.size
        return np.concatenate(found)

    def of_prompt_rows(self, prompts: np.ndarray) -> np.ndarray:
        """Rows of prompts given by their row in the prompt set, int64 [n]."""
        starts = np.array([unit.start for unit in self._units], dtype=np.int64)
        numbers = np.searchsorted(starts, prompts, side="right") - 1
        first, last = np.empty(prompts.size, np.int64), np.empty(prompts.size, np.int64)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            within = prompts[chosen] - starts[number]
            if number < 0 or within.max() >= len(self._units[number]):
                raise InputError(f"column {self.column.name!r} lacks units of these prompts: run the harvest again")
            offsets = self._offsets(number)
            first[chosen], last[chosen] = offsets[within], offsets[within + 1]
        counts = last - first
        return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())

    def _offsets(self, number: int) -> np.ndarray:
        """First row of every prompt of a unit and, last, of the next unit: int64 [prompts of the unit + 1]."""
        if number not in self._known:
            counts = np.ones(len(self._units[number]), np.int64)
            if self.column.rows == "token":
                tokens = read_tokens(self.store.location, self.column.receipts[number])
                selected = tokens.column("selected").to_numpy(zero_copy_only=False)
                counts = np.bincount(tokens.column("prompt").to_numpy()[selected], minlength=counts.size)
            self._known[number] = self.column.unit_start(number) + np.concatenate([[0], np.cumsum(counts)])
        return self._known[number]

    @cached_property
    def _known(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {identity: row for row, identity in enumerate(self.store.prompts.prompt_ids)}

    @cached_property
    def _units(self) -> list[Unit]:
        """Units that the column holds, in order."""
        units = {unit.name: unit for unit in self.store.units}
        return [units[receipt.unit] for receipt in self.column.receipts]
