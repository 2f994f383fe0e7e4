"""Prompt sets: an Arrow table of prompts in one canonical form."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from store.digest import digest_sequence
from store.errors import InputError
from store.prompt_files import read_table, table_of_rows
from store.unit import Unit, plan_units

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SPANS = pa.list_(pa.struct([("message", pa.int32()), ("start", pa.int32()), ("end", pa.int32())]))
CANONICAL = {
    "prompt_id": pa.string(),
    "text": pa.string(),
    "messages": MESSAGES,
    "response": pa.string(),
    "group": pa.string(),
    "spans": SPANS,
}
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts, one a row.

    table   `prompt_id` (string, unique), `text` or `messages` (list of {role, content}), and where given
            `response` (string), `group` (string) and `spans` (list of {message, start, end}: characters of `text`
            or of a message's content). Every other column is a label or metadata under its own name.
    """

    table: pa.Table

    @staticmethod
    def read(
        path: Path | str,
        *,
        text: str | None = None,
        messages: str | None = None,
        label: str | None = None,
        group: str | None = None,
        response: str | None = None,
        prompt_id: str | None = None,
    ) -> "PromptSet":
        """Reads JSONL, a JSON array, CSV, Parquet or a saved Hugging Face dataset; the keywords map columns.

        Raises InputError for a missing or malformed file, an unknown column (naming the columns there are), an
        empty set, a row without a prompt, and duplicate prompt ids.
        """
        mapped = {
            "text": text,
            "messages": messages,
            "label": label,
            "group": group,
            "response": response,
            "prompt_id": prompt_id,
        }
        words = {*CANONICAL, *(column for name, column in mapped.items() if column and name in CANONICAL)}
        table = read_table(Path(path), words - {"messages", "spans"})
        # What is mapped is meant: a column of the other kind that happens to be there is not.
        for given, other in (("text", "messages"), ("messages", "text")):
            if mapped[given] is not None and mapped[other] is None and other in table.column_names:
                table = table.drop_columns([other]) if mapped[given] != other else table
        for canonical, column in mapped.items():
            if column is None or column == canonical:
                continue
            if column not in table.column_names:
                raise InputError(f"{path} has no column {column!r}: its columns are {_listed(table.column_names)}")
            if canonical in table.column_names:
                table = table.drop_columns([canonical])
            table = table.append_column(canonical, table.column(column))
        for canonical, column in mapped.items():
            if column == canonical and column not in table.column_names:
                raise InputError(f"{path} has no column {column!r}: its columns are {_listed(table.column_names)}")
        return PromptSet.from_table(table, where=str(path))

    @staticmethod
    def from_rows(rows: Sequence[Mapping[str, Any]]) -> "PromptSet":
        """A set from JSON-like rows; a row may lack columns that others have. Raises InputError as `read` does."""
        return PromptSet.from_table(table_of_rows([dict(row) for row in rows], "the rows"), where="the rows")

    @staticmethod
    def from_table(table: pa.Table, *, where: str = "the table") -> "PromptSet":
        """Checks a table and brings it into canonical form; raises InputError as `read` does."""
        if table.num_rows == 0:
            raise InputError(f"{where} holds no prompts: nothing to do")
        names = table.column_names
        if "text" not in names and "messages" not in names:
            raise InputError(
                f"{where} has neither a column 'text' nor 'messages': map one with --text-column or "
                f"--messages-column; its columns are {_listed(names)}"
            )
        if "unit" in names:
            raise InputError(f"{where} has a column 'unit', which the store needs for itself: rename it")
        if "prompt_id" not in names:
            table = table.append_column("prompt_id", pa.array([str(row) for row in range(table.num_rows)]))
        for name, kind in CANONICAL.items():
            if name in table.column_names:
                table = _cast(table, name, kind, where)
        for name in table.column_names:
            if name not in CANONICAL:
                table = _as_json_scalars(table, name, where)
        order = [name for name in CANONICAL if name in table.column_names]
        table = table.select(order + sorted(name for name in table.column_names if name not in CANONICAL))
        _check_ids(table, where)
        _check_prompts(table, where)
        return PromptSet(table.combine_chunks())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The units of this set as one sealed batch. A store that was appended to has its own."""
        return tuple(plan_units(self.table, self.lengths))

    @property
    def digest(self) -> str:
        """Hash of the ordered unit digests."""
        return digest_sequence(unit.digest for unit in self.units)

    @property
    def lengths(self) -> list[int]:
        """Characters of each prompt with its response."""
        totals = [0] * len(self)
        for name in ("text", "response"):
            if name in self.table.column_names:
                values = self.table.column(name).to_pylist()
                totals = [total + len(value or "") for total, value in zip(totals, values, strict=True)]
        if "messages" in self.table.column_names:
            chats = self.table.column("messages").to_pylist()
            totals = [
                total + sum(len(message["content"] or "") for message in chat or [])
                for total, chat in zip(totals, chats, strict=True)
            ]
        return totals

    @property
    def prompt_ids(self) -> list[str]:
        return list(self.table.column("prompt_id").to_pylist())

    def labels(self, name: str) -> np.ndarray:
        """A column's values, [prompts]. Raises InputError for an unknown column, naming those there are."""
        if name not in self.table.column_names:
            raise InputError(f"the prompt set has no column {name!r}: it has {_listed(self.table.column_names)}")
        return np.asarray(self.table.column(name).to_numpy(zero_copy_only=False))


def _as_json_scalars(table: pa.Table, name: str, where: str) -> pa.Table:
    """A label or metadata column as JSON knows it: dates become text, NaN null. Raises InputError for the rest."""
    column = table.column(name)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        fixed: Any = pa.chunked_array([pa.array(values, pa.float64(), mask=~np.isfinite(values))])
    elif pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        fixed = pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())])
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise InputError(f"column {name!r} of {where} holds {kind}, which no label can be: leave it out")
    else:
        fixed = column
    return table.set_column(table.column_names.index(name), name, fixed)


def _cast(table: pa.Table, name: str, kind: pa.DataType, where: str) -> pa.Table:
    column = table.column(name)
    try:
        if pa.types.is_string(kind) and not pa.types.is_string(column.type):
            if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
                raise pa.ArrowInvalid(f"it holds {column.type}")
            values = ["" if value is None else str(value) for value in column.to_pylist()]
            cast = pa.chunked_array([pa.array(values, kind)])
        elif name in ("messages", "spans"):
            cast = pa.chunked_array([pa.array(_plain(column.to_pylist(), name, where), kind)])
        else:
            cast = column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, TypeError, OverflowError) as error:
        raise InputError(f"column {name!r} of {where} cannot be read as {kind}: {error}") from error
    return table.set_column(table.column_names.index(name), name, cast)


def _plain(rows: list[Any], name: str, where: str) -> list[Any]:
    """Messages with role and content; spans with the message defaulting to 0."""
    plain: Callable[[Any, str], dict[str, Any]] = _span if name == "spans" else _message
    for number, row in enumerate(rows):
        if row is not None and not isinstance(row, list):
            raise InputError(f"row {number} of {where} has {name} that are no list: {row!r:.80}")
    return [
        None if row is None else [plain(entry, f"row {number} of {where}") for entry in row]
        for number, row in enumerate(rows)
    ]


def _span(span: Any, where: str) -> dict[str, int]:
    if isinstance(span, dict):
        found: list[Any] = [span.get("message") or 0, span.get("start"), span.get("end")]
        # Arrow makes floats of all numbers of a column where one of them is a float.
        if all(type(number) in (int, float) and number % 1 == 0 for number in found):
            return dict(zip(("message", "start", "end"), map(int, found), strict=True))
    raise InputError(f"{where} has a span that is no {{message, start, end}} of whole numbers: {span!r:.80}")


def _message(message: Any, where: str) -> dict[str, str]:
    if not (isinstance(message, dict) and message.keys() >= {"role", "content"}):
        raise InputError(f"{where} has messages that are no list of {{role, content}}: {message!r:.80}")
    if not isinstance(message["content"], str | None):
        raise InputError(
            f"{where} has a message whose content is no string: {message['content']!r:.80}; where it is a list of "
            "parts, join their texts"
        )
    # Null and nothing are what files of other makers are full of.
    more = message.keys() - {"role", "content"} - {key for key, value in message.items() if value in (None, "", [], {})}
    if more:
        raise InputError(
            f"{where} has a message with {min(more)!r}, which the model would not see: write it into the message's "
            "content, or take it out"
        )
    return {"role": message["role"], "content": message["content"]}


def _check_ids(table: pa.Table, where: str) -> None:
    ids = table.column("prompt_id").to_pylist()
    if any(not identity for identity in ids):
        raise InputError(f"row {next(i for i, v in enumerate(ids) if not v)} of {where} has an empty prompt_id")
    if len(set(ids)) < len(ids):
        identity, times = Counter(ids).most_common(1)[0]
        raise InputError(f"prompt id {identity!r} stands {times} times in {where}: every prompt needs its own")


def _check_prompts(table: pa.Table, where: str) -> None:
    ids = table.column("prompt_id").to_pylist()
    empty = [None] * len(ids)
    texts = table.column("text").to_pylist() if "text" in table.column_names else empty
    chats = table.column("messages").to_pylist() if "messages" in table.column_names else empty
    for identity, text, chat in zip(ids, texts, chats, strict=True):
        if not text and not chat:
            raise InputError(f"prompt {identity!r} of {where} is empty: it has neither text nor messages")
        if text and chat:
            raise InputError(
                f"prompt {identity!r} of {where} has both text and messages: say which with --text-column or "
                "--messages-column, or keep one"
            )
        for message in chat or []:
            if message["role"] not in ROLES or message["content"] is None:
                raise InputError(
                    f"prompt {identity!r} of {where} has a message with role {message['role']!r} and content "
                    f"{message['content']!r}: roles are {', '.join(ROLES)}, content is a string"
                )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
