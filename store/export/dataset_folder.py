"""Exports as folders that Hugging Face's `datasets.load_from_disk` reads: Arrow streams and two JSON files.

Arrow has no bfloat16, so that becomes float32, exactly. Format as written by datasets 5.2 (`Dataset.save_to_disk`).
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from store.digest import digest_json
from store.errors import InputError
from store.export.source import Source, widened, widened_dtype
from store.site import Site

FILE_BYTES = 512 << 20
# TransformerLens' names, which SAELens uses, of the sites that both have.
_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "heads": "attn.hook_z",
    "neurons": "mlp.hook_post",
}


def write_dataset(source: Source, folder: Path) -> str:
    """A row per row of the column: `values`, what it speaks of, and its prompt's group and labels."""
    labels = source.labels()
    write_folder(_dataset_batches(source, labels), folder)
    return widened_dtype(source.column.dtype).name


def write_saelens(source: Source, folder: Path, *, context: int) -> str:
    """SAELens' cached activations: rows of `context` consecutive tokens, [context, width], and their token ids.

    The rows of the column are cut as they follow each other, over the borders of prompts; the last, incomplete
    context is left out. Format as of SAELens 6 (`CacheActivationsRunner`), which reads it with
    `cached_activations_path=<this folder>` and the hook's name, see `hook_name`.
    Raises InputError where the column has fewer rows than one context.
    """
    if len(source.column) < context:
        raise InputError(
            f"column {source.column.name!r} has {len(source.column)} rows, fewer than one context of {context}: "
            "give a smaller --context"
        )
    write_folder(_contexts(source, context), folder)
    return widened_dtype(source.column.dtype).name


def hook_name(column: str) -> str:
    """The TransformerLens name of a column's site; the column's own name where there is none."""
    try:
        site = Site.parse(column)
    except InputError:
        return column
    return f"blocks.{site.layer}.{_HOOKS[site.kind]}" if site.kind in _HOOKS else column


def write_folder(batches: Iterator[pa.RecordBatch], folder: Path) -> None:
    """Writes a dataset of these batches, at least one, in files of about FILE_BYTES."""
    first = next(batches)
    features = {field.name: _feature(field) for field in first.schema}
    schema = first.schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    # datasets itself names files data-00000-of-00003, but reads any name that state.json lists.
    files = ["data-00000.arrow"]
    writer, filled = pa.ipc.new_stream(folder / files[0], schema), 0
    for batch in chain([first], batches):
        if filled > FILE_BYTES:
            writer.close()
            files.append(f"data-{len(files):05d}.arrow")
            writer, filled = pa.ipc.new_stream(folder / files[-1], schema), 0
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        filled += batch.nbytes
    writer.close()
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": digest_json([features, files])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    described = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(described, indent=2))


def _dataset_batches(source: Source, labels: pa.Table) -> Iterator[pa.RecordBatch]:
    for values, table in source.pieces():
        table = table.append_column("values", _nested(widened(values)))
        of_prompt = labels.take(table.column("prompt"))
        for name in of_prompt.column_names:
            free = f"prompt_{name}" if name in table.column_names else name
            table = table.append_column(free, of_prompt.column(name))
        yield from table.combine_chunks().to_batches()


def _contexts(source: Source, context: int) -> Iterator[pa.RecordBatch]:
    """Batches of whole contexts; what a piece leaves over goes in front of the next one."""
    name = hook_name(source.column.name)
    width = int(np.prod(source.column.shape[1:]))
    values_left = np.empty((0, width), widened_dtype(source.column.dtype))
    ids_left = np.empty(0, np.int32)
    for values, table in source.pieces():
        values_left = np.concatenate([values_left, widened(values).reshape(len(values), width)])
        columns = {}
        count = len(values_left) // context
        if "token_id" in table.column_names:
            ids_left = np.concatenate([ids_left, table.column("token_id").to_numpy().astype(np.int32)])
            whole = ids_left[: count * context].reshape(count, context)
            columns["token_ids"], ids_left = _nested(whole), ids_left[count * context :]
        block = values_left[: count * context].reshape(count, context, width)
        values_left = values_left[count * context :]
        if count:
            yield _array2d_batch(name, block, columns)


def _array2d_batch(name: str, block: np.ndarray, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """A batch with `block` [n, context, width] as datasets' Array2D, an Arrow extension over a list of lists."""
    count, context, width = block.shape
    inner = pa.ListArray.from_arrays(_offsets(count * context, width), pa.array(block.reshape(-1)))
    outer = pa.ListArray.from_arrays(_offsets(count, context), inner)
    metadata = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[context, width], block.dtype.name]),
    }
    fields = [pa.field(name, outer.type, metadata=metadata)]
    fields += [pa.field(column, values.type) for column, values in columns.items()]
    return pa.RecordBatch.from_arrays([outer, *columns.values()], schema=pa.schema(fields))


def _offsets(count: int, size: int) -> pa.Array:
    return pa.array(np.arange(0, (count + 1) * size, size, dtype=np.int32))


def _nested(values: np.ndarray) -> pa.Array:
    """[n, a, b …] as lists of fixed size."""
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _feature(field: pa.Field) -> dict[str, Any]:
    """What datasets calls a column's type."""
    if field.metadata:
        shape, dtype = json.loads(field.metadata[b"ARROW:extension:metadata"])
        return {"shape": shape, "dtype": dtype, "_type": "Array2D"}
    return _feature_of(field.type)


def _feature_of(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature_of(kind.value_type), "length": kind.list_size, "_type": "List"}
    names = {"double": "float64", "float": "float32", "halffloat": "float16"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}
