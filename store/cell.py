"""Cells: one model × one unit × one capture, written once, immutable, published by their receipt.

Commit: encode in memory, digesting on the way; write the attempt's files under a prefix of its own and sync them;
create the receipt exclusively. The first receipt wins. A loser's attempt is garbage that `gc` removes.
"""

import io
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from store.arrays import encode_array
from store.capture import Capture
from store.digest import digest_tokens, sha256
from store.errors import DamageError, IncompleteError, InputError
from store.location import Location
from store.marks import mark_of
from store.record import decode_record, encode_record
from store.shard import EncodedFile
from store.unit import Unit

GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
TOKENS_FILE = "tokens.parquet"
TOKEN_COLUMNS = ("prompt", "position", "token_id", "role", "selected")


@dataclass(frozen=True, kw_only=True)
class ColumnReceipt:
    """What was published of one column. `digest` is of content, `path` the array's folder in the attempt."""

    key: str
    digest: str
    dtype: str
    shape: tuple[int, ...]
    path: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The only thing readers trust: what was published, where it lies, and the digests that prove it.

    columns  by name; tokens_digest is of the token table's content, tokens the number of its rows
    files    path relative to the attempt -> (bytes, SHA-256)
    notes    JSON told by the harvest: quarantined prompts, non-finite counts, degradations, certificate
    """

    model: str
    unit: str
    unit_digest: str
    capture: str
    attempt: str
    columns: Mapping[str, ColumnReceipt]
    tokens: int
    tokens_digest: str
    files: Mapping[str, tuple[int, str]]
    notes: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return f"cells/{self.model}/{self.unit}/{self.capture}/{self.attempt}"


def receipt_path(model: str, unit: str, capture: str) -> str:
    return f"receipts/{model}/{unit}/{capture}.json"


def read_receipt(location: Location, model: str, unit: str, capture: str) -> Receipt | None:
    """The receipt of a cell; None where there is none. Raises DamageError where it is not what was written."""
    path = receipt_path(model, unit, capture)
    try:
        data = location.read(path)
    except FileNotFoundError:
        return None
    return decode_receipt(data, f"{location.url}/{path}", path)


def decode_receipt(data: bytes, where: str, path: str) -> Receipt:
    """Raises DamageError for a receipt that is altered or lies in another cell's place."""
    record = decode_record(data, where)
    if record.pop("format") != 1:
        raise InputError(f"{where} was written by a newer thresher: update this one")
    receipt = Receipt(
        **{
            **record,
            "columns": {
                name: ColumnReceipt(**{**c, "shape": tuple(c["shape"])}) for name, c in record["columns"].items()
            },
        },
    )
    # Its paths are read, and deleted: none may lead out of its attempt.
    inside = [receipt.attempt, *receipt.files, *(column.path for column in receipt.columns.values())]
    if "/" in receipt.attempt or any(set(path.split("/")) & {"", ".", ".."} for path in inside):
        raise DamageError(f"{where} names files outside of its cell: run 'thresher verify STORE --repair'")
    if receipt_path(receipt.model, receipt.unit, receipt.capture) != path:
        raise DamageError(f"{where} is the receipt of another cell: run 'thresher verify STORE --repair'")
    return receipt


def publish_cell(
    location: Location,
    *,
    model: str,
    unit: Unit,
    capture: Capture,
    columns: Mapping[str, np.ndarray],
    tokens: pa.Table,
    notes: Mapping[str, Any],
) -> Receipt:
    """Writes a cell and publishes it; returns the published receipt, which may be another attempt's.

    columns  name -> values, exactly the capture's; tokens  the unit's token table, TOKEN_COLUMNS
    Raises ValueError where they do not fit the capture, IncompleteError where the disk does not let us.
    """
    _check(capture, columns, tokens)
    attempt = f"{os.getpid()}-{secrets.token_hex(6)}"
    folder = f"cells/{model}/{unit.name}/{capture.id}/{attempt}"
    sizes: dict[str, list[Any]] = {}
    receipts = {}

    def write(files: dict[str, EncodedFile]) -> None:
        location.write({f"{folder}/{name}": file.data for name, file in files.items()})
        sizes.update({name: [len(file.data), file.sha256] for name, file in files.items()})

    # A column is written while the next one is being encoded; one at a time, so that nothing follows a failed write.
    with ThreadPoolExecutor(1) as writer:
        plain = {"zarr.json": GROUP, TOKENS_FILE: _encode_tokens(tokens)}
        writing = writer.submit(
            write, {name: EncodedFile(data=data, sha256=sha256(data)) for name, data in plain.items()}
        )
        for column in capture.columns:
            values = columns[column.name]
            encoded = encode_array(values)
            receipts[column.name] = {
                "key": column.key,
                "digest": encoded.digest,
                "dtype": values.dtype.name,
                "shape": list(values.shape),
                "path": column.path,
            }
            writing.result()
            writing = writer.submit(write, {f"{column.path}/{name}": file for name, file in encoded.files.items()})
        writing.result()
    record = {
        "format": 1,
        "model": model,
        "unit": unit.name,
        "unit_digest": unit.digest,
        "capture": capture.id,
        "attempt": attempt,
        "columns": receipts,
        "tokens": tokens.num_rows,
        "tokens_digest": digest_tokens(tokens),
        "files": sizes,
        "notes": dict(notes),
    }
    _make_groups(location, folder)
    location.create(receipt_path(model, unit.name, capture.id), encode_record(record))
    # Whether this attempt won, lost, or the answer to its create was lost on the way: what stands there counts.
    published = read_receipt(location, model, unit.name, capture.id)
    if published is None:
        raise DamageError(f"the receipt of {folder} vanished while it was published: run the harvest again")
    if published.attempt == attempt and location.present([mark_of(attempt)]):
        # `gc` took this attempt for one that was given up, and marked it before it looked for its receipt.
        location.delete(receipt_path(model, unit.name, capture.id))
        raise IncompleteError(
            f"{location.url}/{folder} was removed by 'thresher gc' while it was written: run the same command again, "
            "and give gc a longer --older-than"
        )
    return published


def read_tokens(location: Location, receipt: Receipt) -> pa.Table:
    """The token table of a published cell. Raises DamageError where the file is not what was written."""
    path = f"{receipt.folder}/{TOKENS_FILE}"
    try:
        data = location.read(path)
    except FileNotFoundError as error:
        raise DamageError(f"{path} is missing: run 'thresher verify STORE --repair'") from error
    if sha256(data) != receipt.files[TOKENS_FILE][1]:
        raise DamageError(f"{path} is damaged: run 'thresher verify STORE --repair', then the harvest again")
    # Not read_table: that imports pandas, which takes a second.
    return pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()


def _check(capture: Capture, columns: Mapping[str, np.ndarray], tokens: pa.Table) -> None:
    if set(columns) != set(capture.names):
        raise ValueError(f"capture {capture.id} takes columns {sorted(capture.names)}, not {sorted(columns)}")
    if tuple(tokens.column_names) != TOKEN_COLUMNS:
        raise ValueError(f"a token table has columns {TOKEN_COLUMNS}, not {tokens.column_names}")
    selected = int(np.count_nonzero(tokens.column("selected").to_numpy(zero_copy_only=False)))
    for column in capture.columns:
        rows = columns[column.name].shape[0]
        if column.rows == "token" and rows != selected:
            raise ValueError(f"column {column.name!r} has {rows} rows for {selected} selected tokens")


def _encode_tokens(tokens: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(tokens, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _make_groups(location: Location, folder: str) -> None:
    """Every folder above an array is a Zarr group, so that `zarr.open` walks the whole store."""
    parts = folder.split("/")[:-1]
    for depth in range(len(parts), 0, -1):
        path = f"{'/'.join(parts[:depth])}/zarr.json"
        try:
            location.read(path)
        except FileNotFoundError:
            location.create(path, GROUP)
