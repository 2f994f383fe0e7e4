"""What a folder and a receipt look like from outside: to see that nothing was written, or how much."""

from pathlib import Path

import ml_dtypes
import numpy as np

from store import Receipt


def trace(folder: Path) -> list[tuple[str, int, int]]:
    """Everything under a folder, itself included: name, size, time of the last change."""
    found = [folder, *folder.rglob("*")] if folder.exists() else []
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def nbytes(receipt: Receipt, name: str) -> int:
    """Bytes of a published column before compression."""
    column = receipt.columns[name]
    dtype = np.dtype(ml_dtypes.bfloat16 if column.dtype == "bfloat16" else column.dtype)
    return int(np.prod(column.shape)) * dtype.itemsize
