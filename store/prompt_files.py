"""Prompt files as Arrow tables: JSONL, a JSON array, CSV, Parquet, a saved Hugging Face dataset."""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from store.errors import InputError


def read_table(path: Path, verbatim: Collection[str] = ()) -> pa.Table:
    """The rows of a file, columns as they are named there; `verbatim` columns of a CSV are text, to the letter.

    Raises InputError for what cannot be read, and for a column that stands twice.
    """
    if not path.exists():
        raise InputError(f"no prompt file at {path}: check the path")
    if path.is_dir():
        return _read_dataset(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} has the ending {path.suffix!r}: prompts come as {', '.join(_READERS)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: it holds no prompts")
    try:
        table = _read_csv(path, verbatim) if reader is _read_csv else reader(path)
    except (pa.ArrowException, UnicodeDecodeError, RecursionError, OSError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    twice = [name for name, times in Counter(table.column_names).items() if times > 1]
    if twice:
        raise InputError(f"column {twice[0]!r} stands twice in {path}: rename one of them")
    return table


def _read_jsonl(path: Path) -> pa.Table:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            rows.append(_object(line, f"line {number} of {path}"))
    return table_of_rows(rows, str(path))


def _read_json(path: Path) -> pa.Table:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}; for one object a line name it .jsonl") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} should hold a JSON array of objects, one per prompt")
    return table_of_rows(rows, str(path))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not readable JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} should be a JSON object")
    return row


def table_of_rows(rows: list[dict[str, Any]], where: str) -> pa.Table:
    """Rows as a table; scalars of several kinds, and integers beyond 64 bits, become text.

    Raises InputError, naming the row, where kinds of nested values are mixed.
    """
    # from_pylist takes its columns from the first row alone: a column that begins later would be lost.
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except UnicodeEncodeError as error:
            row = next(row for row, value in enumerate(values) if not _encodable(value))
            raise InputError(
                f"row {row} of {where} has half of a surrogate pair in column {name!r}: that is no text, mend it"
            ) from error
        except (pa.ArrowException, OverflowError) as error:
            if all(value is None or isinstance(value, (str, int, float, bool)) for value in values):
                columns[name] = pa.array([None if value is None else str(value) for value in values])
            else:
                row = bisect_left(range(len(values)), True, key=lambda last: not _one_kind(values[: last + 1]))
                raise InputError(
                    f"row {row} of {where} mixes kinds of values in column {name!r} ({error}): one column holds one "
                    "kind, and the content of a message is one string"
                ) from error
    return pa.table(columns)


def _one_kind(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(path: Path, verbatim: Collection[str] = ()) -> pa.Table:
    # Without their type, 007 would become 7 and true True.
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(verbatim, pa.string())),
    )


def _read_parquet(path: Path) -> pa.Table:
    return pyarrow.parquet.ParquetFile(path).read()


def _read_dataset(path: Path) -> pa.Table:
    files = sorted(path.glob("*.parquet"))
    if files:
        return pa.concat_tables([_read_parquet(file) for file in files], promote_options="default")
    files = sorted(path.glob("data-*.arrow"))
    if not files:
        raise InputError(f"{path} is a folder without *.parquet or data-*.arrow: it holds no prompts to read")
    return pa.concat_tables([pa.ipc.open_stream(file.read_bytes()).read_all() for file in files])


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
