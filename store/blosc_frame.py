"""Chunks compressed as Blosc frames with zstd inside: every Blosc reads them, and few write them as fast.

Blosc's shuffle puts the bytes of equal significance together. In activations only the most significant one, sign and
exponent, repeats itself: it has about three bits of entropy in bfloat16, while the others are noise. So that plane
alone is entropy-coded, and with few attempts at finding matches, which do not exist there: smaller than what Blosc's
own zstd makes of it, in a quarter of the time. The payload of a block is two zstd frames, one after the other, as
ZSTD_decompress accepts them. Format: c-blosc 1.21, README_CHUNK_FORMAT.rst.
"""

import struct
import threading
from itertools import accumulate

import ml_dtypes
import numpy as np
import zstandard

# With its planes and what becomes of them it fits into a processor's second cache.
BLOCK_BYTES = 512 << 10
_VERSION, _ZSTD_FORMAT = 2, 1
_SHUFFLED, _COPIED, _NOT_SPLIT, _ZSTD = 0x01, 0x02, 0x10, 4 << 5
_HEADER = struct.Struct("<BBBBIII")
_LENGTH = struct.Struct("<I")
_local = threading.local()


def encode_frame(values: np.ndarray) -> bytes:
    """The Blosc frame of an array's bytes in C order; little-endian, at most 2 GiB."""
    size = values.dtype.itemsize
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    block = min(raw.nbytes, BLOCK_BYTES // size * size)
    is_float = values.dtype.kind == "f" or values.dtype == ml_dtypes.bfloat16
    payloads = [_encode_block(raw[start : start + block], size, is_float) for start in range(0, raw.nbytes, block)]
    starts = list(accumulate((_LENGTH.size + len(part) for part in payloads), initial=_HEADER.size + 4 * len(payloads)))
    if starts[-1] >= _HEADER.size + raw.nbytes:
        total = _HEADER.size + raw.nbytes
        header = _HEADER.pack(_VERSION, _ZSTD_FORMAT, _COPIED | _ZSTD, size, raw.nbytes, block, total)
        return header + raw.tobytes()
    flags = _ZSTD | _NOT_SPLIT | (_SHUFFLED if size > 1 else 0)
    parts = [_HEADER.pack(_VERSION, _ZSTD_FORMAT, flags, size, raw.nbytes, block, starts[-1])]
    parts += [_LENGTH.pack(start) for start in starts[:-1]]
    for payload in payloads:
        parts += [_LENGTH.pack(len(payload)), payload]
    return b"".join(parts)


def _encode_block(raw: np.ndarray, size: int, is_float: bool) -> bytes:
    """One block: its bytes by significance, compressed; uncompressed where that would be longer."""
    planes = _planes(raw, size)
    exponent, noise, general = _compressors()
    if is_float:
        payload = noise.compress(planes[:-1].reshape(-1).data) + exponent.compress(planes[-1].data)
    else:
        payload = general.compress(planes.reshape(-1).data)
    # A block as long as it was is read as a plain copy of the planes.
    return payload if len(payload) < raw.nbytes else planes.tobytes()


def _planes(raw: np.ndarray, size: int) -> np.ndarray:
    """[size, n] bytes, those of equal significance together, from n values of `size` bytes."""
    if size != 2:
        return np.ascontiguousarray(raw.reshape(-1, size).T)
    # Twice as fast as the transposition of two columns.
    words, planes = raw.view("<u2"), np.empty((2, raw.size // 2), np.uint8)
    np.copyto(planes[0], words, casting="unsafe")
    np.copyto(planes[1], words >> 8, casting="unsafe")
    return planes


def _compressors() -> tuple[zstandard.ZstdCompressor, zstandard.ZstdCompressor, zstandard.ZstdCompressor]:
    """For exponents, for noise, and for anything else. One set per thread: they must not be shared."""
    if not hasattr(_local, "made"):
        exponent = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, search_log=1, window_log=19
        )
        _local.made = (
            zstandard.ZstdCompressor(compression_params=exponent),
            zstandard.ZstdCompressor(level=-1),
            zstandard.ZstdCompressor(level=1),
        )
    made: tuple[zstandard.ZstdCompressor, zstandard.ZstdCompressor, zstandard.ZstdCompressor] = _local.made
    return made
