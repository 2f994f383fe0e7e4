"""Which label value and which fold a prompt is of: decided by the prompt alone, so equal in every unit and run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from store.digest import digest_json, sha256
from store.errors import InputError
from store.prompt_set import PromptSet

# More than that is an identifier and no label: it would have a cell for each prompt.
MOST_VALUES = 1000


def label_values(prompts: PromptSet, label: str) -> tuple[Any, ...]:
    """The distinct values of a label that are not null, sorted: strings, or numbers, or False and True.

    Raises InputError for an unknown column (naming those there are), one of lists or of objects, one without any
    value, and one with more than 1,000.
    """
    prompts.labels(label)
    column = prompts.table.column(label)
    if pa.types.is_nested(column.type):
        raise InputError(f"label {label!r} holds {column.type}: moments need one value a prompt, a string or a number")
    values = sorted({value for value in column.to_pylist() if value is not None})
    if not values:
        raise InputError(f"label {label!r} has no value in these prompts: choose another column")
    if len(values) > MOST_VALUES:
        raise InputError(f"label {label!r} has {len(values):,} values: moments are kept for {MOST_VALUES:,} at most")
    return tuple(values)


def cells_of(prompts: pa.Table, *, label: str, values: Sequence[Any], folds: int) -> np.ndarray:
    """int64 [n]: place of a prompt's value in `values` times `folds`, plus its fold; −1 where its label is null.

    Raises InputError for a value that is none of `values`.
    """
    places = {value: place for place, value in enumerate(values)}
    cells = np.full(prompts.num_rows, -1, np.int64)
    fold = fold_of(prompts, folds)
    for row, value in enumerate(prompts.column(label).to_pylist()):
        if value is None:
            continue
        if value not in places:
            name = prompts.column("prompt_id")[row].as_py()
            raise InputError(
                f"prompt {name!r} has {label}={value!r}, which the sink of moments was not made for: make it of all "
                "the prompts of the store"
            )
        cells[row] = places[value] * folds + fold[row]
    return cells


def fold_of(prompts: pa.Table, folds: int) -> np.ndarray:
    """int64 [n]: SHA-256 of the group's name, modulo `folds`. A prompt whose group is not told is a group of its own,
    named by its content, so that equal prompts are of one fold."""
    groups = prompts.column("group").to_pylist() if "group" in prompts.column_names else [None] * prompts.num_rows
    parts = [name for name in ("text", "messages", "response") if name in prompts.column_names]
    contents = prompts.select(parts).to_pylist()
    hashes = [
        sha256(str(group).encode()) if group is not None else digest_json({k: v for k, v in row.items() if v})
        for group, row in zip(groups, contents, strict=True)
    ]
    return np.array([int(digest[:15], 16) % folds for digest in hashes], np.int64)
