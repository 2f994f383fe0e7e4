"""Activations that were made elsewhere, as a column of a store: one matrix in a `.npy` or `.safetensors` file.

Cells are published as a harvest does: unit by unit, once, by receipt; killed on the way, the same call goes on.
The file's SHA-256 and what its rows speak of are part of the column's key, so another file under the same name is
refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from store.arrays import DTYPES
from store.capture import ColumnSpec
from store.cell import TOKEN_COLUMNS
from store.digest import digest_file, digest_json, digest_tokens
from store.errors import InputError
from store.model_files import ModelFile
from store.model_ref import ModelRef
from store.store import Store
from store.unit import Unit

_INTEGERS = ("prompt", "position", "token_id")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Rows of a file, read when asked for. `read(start, stop)` gives [stop - start, …]."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], np.ndarray]


def labelled_model(label: str) -> ModelRef:
    """A model of which only a name is known. Two stores that use the same label speak of the same model."""
    return ModelRef(
        label, files=(ModelFile(role="label", path=label, size=0, mtime_ns=0, sha256=digest_json({"label": label})),)
    )


def import_column(
    store: Store,
    model: ModelRef | str,
    name: str,
    file: Path | str,
    *,
    tensor: str | None = None,
    tokens: pa.Table | None = None,
) -> int:
    """Publishes the rows of a file as column `name` of `model`; returns how many cells were published now.

    model   a reference, or a label where the model itself is not at hand
    file    a `.npy` or `.safetensors` file; `tensor` names one of several tensors in the latter
    tokens  None where row i of the matrix speaks of prompt i. Otherwise one row per row of the matrix: `prompt`
            (row of the prompt set, ascending), `position`, `token_id` and, if wanted, `role`; positions ascend within a
            prompt

    Raises InputError where the file cannot be read, has another number of rows than there are prompts or tokens, or a
    dtype that no column has, and where `name` is a column made from something else.
    """
    path = Path(file).expanduser()
    matrix = open_matrix(path, tensor)
    table = _tokens_of_prompts(len(store.prompts)) if tokens is None else _checked(tokens, len(store.prompts))
    wanted = f"{len(store.prompts)} prompts" if tokens is None else f"{table.num_rows} tokens"
    if matrix.shape[0] != table.num_rows:
        raise InputError(f"{path} has {matrix.shape[0]} rows for {wanted}: give a row for each, in their order")
    settings = {
        "import": {"sha256": digest_file(path), "tensor": tensor, "file": path.name},
        "dtype": matrix.dtype.name,
        "tokens": None if tokens is None else digest_tokens(table),
    }
    reference = labelled_model(model) if isinstance(model, str) else model.resolve()
    captures = store.register([ColumnSpec(name=name, rows="prompt" if tokens is None else "token", settings=settings)])
    store.want(reference, captures)
    prompts = table.column("prompt").to_numpy()
    missing = store.missing(reference, captures)
    for unit, (capture,) in missing:
        start, stop = np.searchsorted(prompts, [unit.start, unit.stop]).tolist()
        rows = _of_unit(table.slice(start, stop - start), unit)
        store.publish(reference, unit, capture, {name: matrix.read(start, stop)}, rows, {"quarantined": []})
    return len(missing)


def open_matrix(path: Path, tensor: str | None = None) -> Matrix:
    """A file's matrix, memory-mapped. Raises InputError for what is none, naming the tensors there are."""
    try:
        matrix = _open_npy(path) if path.suffix == ".npy" else _open_safetensors(path, tensor)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as .npy or .safetensors ({reason}): export it again") from error
    if matrix.dtype.name not in DTYPES or not matrix.shape:
        raise InputError(
            f"{path} holds {matrix.dtype.name} of shape {matrix.shape}: a column has rows of {', '.join(DTYPES)}"
        )
    return matrix


def _open_npy(path: Path) -> Matrix:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return Matrix(shape=values.shape, dtype=values.dtype, read=lambda start, stop: np.array(values[start:stop]))


def _open_safetensors(path: Path, tensor: str | None) -> Matrix:
    with safe_open(path, framework="numpy") as file:
        names = sorted(file.keys())
        if (tensor is None and len(names) != 1) or (tensor is not None and tensor not in names):
            raise InputError(f"{path} holds the tensors {', '.join(names) or 'none'}: name one of them with tensor=")
        chosen = tensor or names[0]
        shape = tuple(file.get_slice(chosen).get_shape())
        dtype = file.get_slice(chosen)[:0].dtype if shape else np.dtype(np.float32)

    def read(start: int, stop: int) -> np.ndarray:
        with safe_open(path, framework="numpy") as file:
            return np.asarray(file.get_slice(chosen)[start:stop])

    return Matrix(shape=shape, dtype=dtype, read=read)


def _tokens_of_prompts(count: int) -> pa.Table:
    """One token a prompt, of which nothing is known: a column of prompts has to have been made of something."""
    return _table(np.arange(count), np.zeros(count), np.full(count, -1), ["unknown"] * count)


def _checked(tokens: pa.Table, prompts: int) -> pa.Table:
    lacking = [name for name in _INTEGERS if name not in tokens.column_names]
    if lacking:
        raise InputError(
            f"the token table lacks {', '.join(lacking)}: its columns are {', '.join(tokens.column_names)}"
        )
    for name in _INTEGERS:
        column = tokens.column(name)
        if not pa.types.is_integer(column.type) or column.null_count:
            raise InputError(f"{name} of the token table has to be integers without gaps, not {column.type}")
    prompt, position, token_id = (tokens.column(name).to_numpy().astype(np.int64) for name in _INTEGERS)
    for name, values in (("position", position), ("token_id", token_id)):
        if values.size and (values.min() < (0 if name == "position" else -1) or values.max() >= 1 << 31):
            raise InputError(f"{name} of the token table goes from {values.min()} to {values.max()}: that is no {name}")
    if prompt.size and (prompt.min() < 0 or prompt.max() >= prompts):
        raise InputError(f"the token table speaks of prompts {prompt.min()} to {prompt.max()}: there are {prompts}")
    step, within = np.diff(prompt), np.diff(position)
    if (step < 0).any() or (within[step == 0] <= 0).any():
        raise InputError("the token table is not in order: prompts ascend, and positions within each prompt")
    if "role" in tokens.column_names and tokens.column("role").null_count:
        raise InputError("role of the token table has gaps: give every token one, or leave the column out")
    role = tokens.column("role").to_pylist() if "role" in tokens.column_names else ["unknown"] * tokens.num_rows
    return _table(prompt, position, token_id, role)


def _table(prompt: np.ndarray, position: np.ndarray, token_id: np.ndarray, role: list[str]) -> pa.Table:
    columns = {
        "prompt": pa.array(prompt.astype(np.int64)),
        "position": pa.array(position.astype(np.int32)),
        "token_id": pa.array(token_id.astype(np.int32)),
        "role": pa.array(role, pa.string()).dictionary_encode(),
        "selected": pa.array(np.ones(len(prompt), bool)),
    }
    return pa.table({name: columns[name] for name in TOKEN_COLUMNS})


def _of_unit(rows: pa.Table, unit: Unit) -> pa.Table:
    """The rows of one unit, whose prompts count from its first."""
    within = (rows.column("prompt").to_numpy() - unit.start).astype(np.int32)
    return rows.set_column(0, "prompt", pa.array(within)).combine_chunks()
