"""Exports that keep the values in arrays, with what their rows speak of in `tokens.parquet` beside them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import tensorstore
from safetensors.numpy import save

from store.direction import write_atomically
from store.export.source import Source, widened, widened_dtype

SHARD_BYTES = 256 << 20
ZARR_CHUNK_BYTES = 4 << 20


def write_numpy(source: Source, folder: Path) -> str:
    """`values.npy`, readable with numpy.load; NumPy's format has no bfloat16, so that becomes float32, exactly."""
    column = source.column
    dtype = widened_dtype(column.dtype)
    with (folder / "values.npy").open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": column.shape}
        np.lib.format.write_array_header_2_0(file, header)
        for values in source.values():
            widened(values).tofile(file)
    _write_tables(source, folder)
    return dtype.name


def write_safetensors(source: Source, folder: Path) -> str:
    """`rows-00000-of-00003.safetensors` and so on, each with one tensor `values` in the column's own dtype."""
    column = source.column
    step = max(1, SHARD_BYTES // source.row_bytes)
    count = max(1, -(-len(column) // step))
    for number in range(count):
        first = number * step
        values = column[first : first + step]
        metadata = {"column": column.name, "first_row": str(first), "rows": str(len(column))}
        write_atomically(
            folder / f"rows-{number:05d}-of-{count:05d}.safetensors", save({"values": values}, metadata=metadata)
        )
    _write_tables(source, folder)
    return column.dtype.name


def write_zarr(source: Source, folder: Path) -> str:
    """A Zarr v3 array without shards, codecs `bytes` and `zstd`; bfloat16 becomes float32, exactly.

    zarr-python reads bfloat16 only where thresher is installed, so this one does without.
    """
    column = source.column
    dtype = widened_dtype(column.dtype)
    row_bytes = max(1, int(np.prod(column.shape[1:])) * dtype.itemsize)
    rows = max(1, min(ZARR_CHUNK_BYTES // row_bytes, len(column)))
    order = {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"}
    metadata = {
        "shape": list(column.shape),
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [rows, *(max(1, n) for n in column.shape[1:])]},
        },
        "codecs": [order, {"name": "zstd", "configuration": {"level": 1}}],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"}, "metadata": metadata}
    array = tensorstore.open(spec, create=True, context=tensorstore.Context()).result()
    first = 0
    for values in source.values(rows=rows * max(1, (64 << 20) // (rows * row_bytes))):
        array[first : first + len(values)].write(widened(values)).result()
        first += len(values)
    _write_tables(source, folder)
    return dtype.name


def _write_tables(source: Source, folder: Path) -> None:
    tables = source.tables()
    first = next(tables)
    with pyarrow.parquet.ParquetWriter(folder / "tokens.parquet", first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
