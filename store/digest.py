"""Digests: what makes two things the same thing.

All of them are SHA-256 in lower-case hex. JSON is digested in one canonical form: sorted keys, no white space,
no NaN, UTF-8.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_json(value: Any) -> str:
    return sha256(canonical_json(value))


def digest_sequence(digests: Iterable[str]) -> str:
    """Digest of an ordered sequence of digests."""
    return sha256("\n".join(digests).encode())


def digest_file(path: Path, *, block: int = 8 << 20) -> str:
    with path.open("rb") as file:
        running = hashlib.sha256()
        while data := file.read(block):
            running.update(data)
    return running.hexdigest()


def digest_array(values: np.ndarray) -> str:
    """Content digest of an array: dtype name, shape, little-endian values in C order.

    Codec, chunking, time, host and attempt have no part in it, so it survives a change of any of them.
    """
    little = values if values.dtype.byteorder != ">" else values.astype(values.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    running = hashlib.sha256(canonical_json({"dtype": values.dtype.name, "shape": list(values.shape)}))
    running.update(flat.data)
    return running.hexdigest()


def digest_rows(table: pa.Table) -> str:
    """Content digest of an Arrow table: column names and values, row by row, blind to chunking and encoding."""
    running = hashlib.sha256(canonical_json(table.column_names))
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            running.update(canonical_json(row))
    return running.hexdigest()


def digest_tokens(table: pa.Table) -> str:
    """Content digest of a token table, column by column: fast for millions of tokens, blind to the encoding."""
    parts: dict[str, str] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type):
            parts[name] = sha256("\n".join(column.to_pylist()).encode())
        else:
            parts[name] = digest_array(column.to_numpy(zero_copy_only=False))
    return digest_json(parts)
