"""Zarr v3 shards, encoded and digested in one pass over memory by as many threads as there are processors.

A shard is its chunks one after the other and then the index: offset and length of every chunk (uint64, little-endian;
all bits set where the chunk lies outside the array) and a CRC32C. Every chunk carries a CRC32C of its own. See
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np

from store.blosc_frame import encode_frame
from store.digest import digest_array

_OUTSIDE = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class EncodedFile:
    data: bytes
    sha256: str


def encode_shards(values: np.ndarray, *, shard_rows: int, chunk_rows: int) -> tuple[dict[str, EncodedFile], str]:
    """The shards of an array by path, and the digest of its content.

    `values` is little-endian in C order, [rows, …]; a shard has whole rows and a whole number of chunks.
    """
    with ThreadPoolExecutor(_processors()) as pool:
        # First, as it is one long piece that cannot be split.
        digest = pool.submit(digest_array, values)
        starts = range(0, values.shape[0] if values.size else 0, shard_rows)
        frames = [
            [
                pool.submit(_encode_chunk, values, row, chunk_rows)
                for row in range(start, min(start + shard_rows, values.shape[0]), chunk_rows)
            ]
            for start in starts
        ]
        tail = "/0" * (values.ndim - 1)
        files = {f"c/{number}{tail}": _join(chunks, shard_rows // chunk_rows) for number, chunks in enumerate(frames)}
        return files, digest.result()


def _encode_chunk(values: np.ndarray, row: int, rows: int) -> bytes:
    """A whole chunk, filled up with zeros at the array's end, and its checksum."""
    chunk = values[row : row + rows]
    if len(chunk) < rows:
        chunk = np.concatenate([chunk, np.zeros((rows - len(chunk), *chunk.shape[1:]), chunk.dtype)])
    frame = encode_frame(chunk)
    return frame + _crc32c(frame)


def _join(chunks: list[Future[bytes]], slots: int) -> EncodedFile:
    """A shard. Its SHA-256 is computed while later chunks are still being compressed."""
    running = hashlib.sha256()
    index = np.full((slots, 2), _OUTSIDE, "<u8")
    parts, offset = [], 0
    for number, chunk in enumerate(chunks):
        data = chunk.result()
        running.update(data)
        index[number] = offset, len(data)
        offset += len(data)
        parts.append(data)
    tail = index.tobytes()
    tail += _crc32c(tail)
    running.update(tail)
    return EncodedFile(data=b"".join([*parts, tail]), sha256=running.hexdigest())


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _crc32c(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")
