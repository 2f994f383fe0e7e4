"""One column of one cell as a Zarr v3 array: encoded in memory, decoded from a location.

Layout: one shard for the whole array, inner chunks of 1,024 whole rows where that is between half a mebibyte and four,
so that a prompt's rows lie in one chunk or two; byte planes and zstd in Blosc frames; CRC32C behind every chunk and
behind the shard's index. Chunks of zeros are written too: a chunk that is missing is damage, never zeros.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from store.digest import canonical_json, sha256
from store.errors import DamageError
from store.location import Location
from store.shard import EncodedFile, encode_shards

# A chunk is as many rows as most prompts have tokens, within bounds: small rows are not worth a chunk of their own,
# and of wide ones a chunk has to be read for a single row.
CHUNK_ROWS = 1024
SMALLEST_CHUNK_BYTES = 512 << 10
LARGEST_CHUNK_BYTES = 4 << 20
LARGEST_SHARD_BYTES = 1 << 30
DTYPES = ("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
# zstd alone is how arrays were written before Blosc frames.
CODECS = ("bytes", "blosc", "zstd", "crc32c", "sharding_indexed")
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTE = {"name": "bytes"}


@dataclass(frozen=True, kw_only=True)
class EncodedArray:
    """The files of an array by relative path, and the digest of its content (see `store.digest.digest_array`)."""

    files: dict[str, EncodedFile]
    digest: str


def encode_array(values: np.ndarray) -> EncodedArray:
    """`zarr.json` and the shards. Content and files are digested while chunks are being compressed."""
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    metadata = metadata_of(values)
    shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = metadata["codecs"][0]["configuration"]["chunk_shape"]
    shards, digest = encode_shards(np.ascontiguousarray(values), shard_rows=shape[0], chunk_rows=chunk[0])
    document = canonical_json(metadata)
    return EncodedArray(
        files={"zarr.json": EncodedFile(data=document, sha256=sha256(document)), **shards}, digest=digest
    )


def open_array(location: Location, path: str, digest: str) -> Any:
    """The array at `path` as a lazy tensorstore. `digest` is the SHA-256 of its zarr.json in the receipt.

    Raises DamageError where the metadata is missing, altered, or asks for a codec that is not ours.
    """
    where = f"{path}/zarr.json"
    try:
        document = location.read(where)
    except FileNotFoundError as error:
        raise damaged(where) from error
    if sha256(document) != digest:
        raise damaged(where)
    metadata = json.loads(document)
    foreign = _codec_names(metadata["codecs"]) - set(CODECS)
    if foreign or metadata["data_type"] not in DTYPES:
        raise DamageError(f"{where} asks for {sorted(foreign) or metadata['data_type']}, which no store of ours does")
    spec = {"driver": "zarr3", "kvstore": location.kvstore(path), **_STRICT}
    # Imported here and below: who only reads receipts should not wait for it.
    import tensorstore

    return tensorstore.open(spec, open=True, read=True, context=_context()).result()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rows on their way into memory. Many can be on their way at once."""

    future: Any
    where: str

    def wait(self) -> None:
        """Returns when the rows are there. Raises DamageError where a chunk is missing or fails its checksum."""
        try:
            self.future.result()
        except ValueError as error:
            raise damaged(self.where) from error


def start_read(array: Any, rows: slice | np.ndarray, into: np.ndarray, where: str) -> Reading:
    """Begins to read rows of an opened array into memory of the same shape and dtype."""
    import tensorstore

    return Reading(future=tensorstore.array(into).write(array[rows]), where=where)


def read_rows(array: Any, rows: slice | np.ndarray, where: str) -> np.ndarray:
    """Rows of an opened array. Raises DamageError where a chunk is missing or fails its checksum."""
    view = array[rows]
    values = np.empty(view.shape, view.dtype.numpy_dtype)
    start_read(array, rows, values, where).wait()
    return values


def chunk_rows(array: Any) -> int:
    """Rows of one chunk: what is read and decoded at once."""
    return int(array.chunk_layout.read_chunk.shape[0])


def damaged(where: str) -> DamageError:
    return DamageError(f"{where} is damaged: run 'thresher verify STORE --repair', then the harvest again")


_STRICT = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}


@cache
def _context() -> Any:
    """No cache: readers keep what they need, and a damaged file is seen on every read."""
    import tensorstore

    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})


def metadata_of(values: np.ndarray) -> dict[str, Any]:
    """The zarr.json of an array of these values."""
    row_bytes = max(1, math.prod(values.shape[1:]) * values.dtype.itemsize)
    wanted = max(SMALLEST_CHUNK_BYTES // row_bytes, min(CHUNK_ROWS, LARGEST_CHUNK_BYTES // row_bytes))
    chunk = max(1, min(wanted, values.shape[0]))
    rows = min(max(1, values.shape[0]), max(chunk, LARGEST_SHARD_BYTES // row_bytes))
    shard = math.ceil(rows / chunk) * chunk
    tail = [max(1, size) for size in values.shape[1:]]
    order = _BYTE if values.dtype.itemsize == 1 else _BYTES
    blosc = {
        "cname": "zstd",
        "clevel": 1,
        "shuffle": "shuffle" if values.dtype.itemsize > 1 else "noshuffle",
        "typesize": values.dtype.itemsize,
        "blocksize": chunk * row_bytes,
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "attributes": {},
        "data_type": values.dtype.name,
        "fill_value": False if values.dtype == bool else 0,
        "shape": list(values.shape),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *tail]}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [chunk, *tail],
                    "codecs": [order, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}],
                    "index_codecs": [_BYTES, {"name": "crc32c"}],
                },
            }
        ],
    }


def _codec_names(codecs: list[dict[str, Any]]) -> set[str]:
    names: set[str] = set()
    for codec in codecs:
        names.add(codec["name"])
        inner = codec.get("configuration", {})
        for nested in ("codecs", "index_codecs"):
            names |= _codec_names(inner.get(nested, []))
    return names
