"""Parquet tables of a weight difference: a row per matrix, and a row per norm or bias."""

import io
from collections.abc import Iterable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet

from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.parts import Place

MATRICES_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "shape": pa.list_(pa.int64()),
        "role": pa.string(),
        "side": pa.string(),
        "layer": pa.int32(),
        "site": pa.string(),
        "frobenius": pa.float64(),
        "relative": pa.float64(),
        "stable_rank": pa.float64(),
        "energy": pa.float64(),
        "noise_edge": pa.float64(),
        "significant": pa.int32(),
        "sigma": pa.list_(pa.float32()),
        "residual": pa.list_(pa.float32()),
        "notes": pa.list_(pa.string()),
        "moved_tokens": pa.list_(pa.struct({"token_id": pa.int64(), "change": pa.float64()})),
        # Where its triples lie: the Zarr group, and the first row in sigma and residual, in left_<outputs> and in
        # right_<inputs>.
        "part": pa.string(),
        "triple": pa.int64(),
        "left": pa.int64(),
        "right": pa.int64(),
    }
)
VECTORS_SCHEMA = pa.schema({"name": pa.string(), "frobenius": pa.float64(), "relative": pa.float64()})


def matrices_table(rows: Iterable[tuple[MatrixDelta, str, Place]]) -> bytes:
    """Parquet of matrices, each with the folder of its part and its place there."""
    records = [{**matrix.record(), "part": part, **asdict(place)} for matrix, part, place in rows]
    return _encoded(pa.Table.from_pylist(records, schema=MATRICES_SCHEMA))


def vectors_table(vectors: Iterable[VectorDelta]) -> bytes:
    """Parquet of norms and biases."""
    return _encoded(pa.Table.from_pylist([vector.record() for vector in vectors], schema=VECTORS_SCHEMA))


def _encoded(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
