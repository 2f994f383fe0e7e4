"""Which prompts a probe is fitted on: their labels, their groups and what a group is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from analysis.statistics.interval import plural
from store.digest import digest_json
from store.errors import InputError
from store.prompt_set import PromptSet

_POSITIVE = {"true", "yes", "1", "1.0"}
_NEGATIVE = {"false", "no", "0", "0.0"}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled prompts in the order of the prompt set.

    prompt    int64 [n], row of the prompt set
    label     bool [n]
    group     string [n]; rows of one group are never on both sides of a split
    noun      what groups are called, in the plural: cities
    positive  the label's value that counts as true, as text
    text      the n prompts as plain text, messages joined by line breaks
    """

    prompt: np.ndarray
    label: np.ndarray
    group: np.ndarray
    noun: str
    positive: str
    text: list[str]

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples at `rows`, a mask or ascending indices."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Examples(
            prompt=self.prompt[index],
            label=self.label[index],
            group=self.group[index],
            noun=self.noun,
            positive=self.positive,
            text=[self.text[i] for i in index.tolist()],
        )


def labelled(
    prompts: PromptSet, *, label: str, group: str = "group", where: Mapping[str, str] | None = None
) -> Examples:
    """The prompts that have a value of `label`, kept where each column of `where` has the value given.

    Without a column `group` under its default name every prompt is its own group, named by its content: the same
    prompt in another file is of the same group, whatever its row or id there. Raises InputError for
    unknown columns (naming those there are), for a label without exactly two values, and where nothing is
    left.
    """
    table = prompts.table
    keep = np.ones(len(prompts), bool)
    for column, value in (where or {}).items():
        keep &= np.array([str(entry) == str(value) for entry in prompts.labels(column).tolist()])
        if not keep.any():
            values = sorted({str(entry) for entry in prompts.labels(column).tolist()})[:12]
            raise InputError(f"no prompt has {column}={value}: the values there are {', '.join(values)}")
    raw = prompts.labels(label)
    keep &= ~np.array([entry is None or entry != entry for entry in raw.tolist()])
    binary, positive = _binary(raw[keep], label)
    if group != "group" or "group" in table.column_names:
        # A prompt whose group is not told is a group of its own.
        named = [None if value is None or value != value else str(value) for value in prompts.labels(group).tolist()]
        alone = _contents(table)
        told = [own if name is None else name for name, own in zip(named, alone.tolist(), strict=True)]
        groups = np.array(told)[keep]
    else:
        groups, group = _contents(table.filter(pa.array(keep))), "prompt"
    return Examples(
        prompt=np.flatnonzero(keep),
        label=binary,
        group=groups,
        noun=plural(_group_name(table, group)),
        positive=positive,
        text=_texts(table.filter(pa.array(keep))),
    )


def _binary(values: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    texts = np.array([str(value).strip() for value in values.tolist()])
    kinds = sorted(set(texts.tolist()))
    if len(kinds) < 2:
        held = f"the value {kinds[0]!r} alone" if kinds else "no values"
        raise InputError(f"label {name!r} has {held} in these prompts: a probe needs examples of two classes")
    if len(kinds) > 2:
        shown = ", ".join(kinds[:6]) + (", …" if len(kinds) > 6 else "")
        raise InputError(f"label {name!r} has {len(kinds)} values ({shown}): a probe needs a label with two")
    positive = next((kind for kind in kinds if kind.lower() in _POSITIVE), None)
    if positive is None:
        negative = next((kind for kind in kinds if kind.lower() in _NEGATIVE), kinds[0])
        positive = kinds[1] if negative == kinds[0] else kinds[0]
    return texts == positive, positive


def _group_name(table: pa.Table, group: str) -> str:
    """The name that the group column had before it was mapped: another column with the same values."""
    if group != "group":
        return group
    values = table.column("group")
    for name in table.column_names:
        same_kind = name not in ("group", "prompt_id") and table.column(name).type == values.type
        if same_kind and table.column(name).equals(values):
            return str(name)
    return group


def _contents(table: pa.Table) -> np.ndarray:
    """String [n]: a digest of each prompt's text, messages and response."""
    parts = [name for name in ("text", "messages", "response") if name in table.column_names]
    # A part that a file lacks and one that is null are the same: neither is in the digest.
    rows = ({name: row[name] for name in parts if row[name] is not None} for row in table.select(parts).to_pylist())
    return np.array([digest_json(row) for row in rows], dtype=str)


def _texts(table: pa.Table) -> list[str]:
    parts: list[list[str]] = [[] for _ in range(table.num_rows)]
    for name in ("messages", "text", "response"):
        if name in table.column_names:
            for part, value in zip(parts, table.column(name).to_pylist(), strict=True):
                if isinstance(value, list):
                    part.extend(str(message["content"]) for message in value)
                elif value:
                    part.append(str(value))
    return ["\n".join(part) for part in parts]
