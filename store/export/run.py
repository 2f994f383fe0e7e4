"""One export: which columns, into which folder, whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet

from store.errors import InputError
from store.export.arrays import write_numpy, write_safetensors, write_zarr
from store.export.dataset_folder import hook_name, write_dataset, write_saelens
from store.export.source import Source
from store.store import Store

FORMATS = ("numpy", "safetensors", "hf", "saelens", "zarr")
MANIFEST = "thresher.json"
_GROUP = '{"zarr_format": 3, "node_type": "group", "attributes": {}}'


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written. `manifest` is what `thresher.json` says; `again` is true where it was there already."""

    folder: Path
    manifest: dict[str, Any]
    bytes: int
    again: bool


def export_store(
    store: Store,
    folder: Path | str,
    *,
    to: str,
    model: str | None = None,
    columns: Sequence[str] | None = None,
    context: int = 128,
    progress: Callable[[int], None] = lambda columns: None,
) -> Export:
    """Writes columns of one model into a new folder: a folder per column, `prompts.parquet`, `thresher.json`.

    to       one of FORMATS
    model    its id; may be left out where the store has one model
    columns  by default all that have rows (a column of whole units has none)
    context  tokens of one row of SAELens' format

    The folder appears when all of it is written. The same export asked for again is left as it is.
    Raises InputError for an unknown format, model or column and a folder that holds something else, IncompleteError
    where units are missing.
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}: use one of {', '.join(FORMATS)}")
    if context < 1:
        raise InputError(f"a context has at least one token, not {context}")
    target = Path(os.path.abspath(Path(folder).expanduser()))
    chosen = _model(store, model)
    sources = [_source(store, chosen, name) for name in _names(store, chosen, columns)]
    asked = _asked(store, chosen, sources, to, context)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        manifest = _manifest_there(target, asked)
        return Export(folder=target, manifest=manifest, bytes=_bytes_of(target), again=True)
    partial_folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    write = _WRITERS[to] if to != "saelens" else partial(write_saelens, context=context)
    written = []
    for source in sources:
        (partial_folder / source.folder).mkdir()
        stored_as = write(source, partial_folder / source.folder)
        written.append(
            {"stored_as": stored_as, **({"hook_name": hook_name(source.column.name)} if to == "saelens" else {})}
        )
        progress(1)
    pyarrow.parquet.write_table(store.prompts.table, partial_folder / "prompts.parquet", compression="zstd")
    if to == "zarr":
        (partial_folder / "zarr.json").write_text(_GROUP)
    if to == "hf":
        (partial_folder / "dataset_dict.json").write_text(json.dumps({"splits": [source.folder for source in sources]}))
    manifest = {**asked, "columns": [{**a, **b} for a, b in zip(asked["columns"], written, strict=True)]}
    (partial_folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    _publish(partial_folder, target)
    return Export(folder=target, manifest=manifest, bytes=_bytes_of(target), again=False)


_WRITERS: dict[str, Callable[[Source, Path], str]] = {
    "numpy": write_numpy,
    "safetensors": write_safetensors,
    "hf": write_dataset,
    "zarr": write_zarr,
}


def _model(store: Store, model: str | None) -> str:
    known = [each.id for each in store.models]
    if model is None and len(known) == 1:
        return known[0]
    if model not in known:
        missing = f"no model {model!r}" if model else "several models" if known else "no model yet"
        raise InputError(f"{store.path} has {missing}: give --model, one of {', '.join(known) or 'none'}")
    return model


def _names(store: Store, model: str, columns: Sequence[str] | None) -> list[str]:
    if columns:
        return list(dict.fromkeys(columns))
    captures = {capture.id: capture for capture in store.captures}
    held = [captures[capture_id] for model_id, capture_id in store.wanted() if model_id == model]
    return [column.name for capture in held for column in capture.columns if column.rows != "unit"]


def _source(store: Store, model: str, name: str) -> Source:
    column = store.column(model, name)
    if column.rows == "unit":
        raise InputError(f"column {name!r} speaks of whole units and has no rows to export: name other columns")
    if not len(column):
        raise InputError(f"column {name!r} has no rows: nothing to export; name other columns")
    return Source(store=store, column=column, folder=column.receipts[0].columns[name].path)


def _asked(store: Store, model: str, sources: Sequence[Source], to: str, context: int) -> dict[str, Any]:
    """What the export is of: content, so that it is the same when the store was moved or has grown elsewhere."""
    return {
        "format": 1,
        "to": to,
        **({"context": context} if to == "saelens" else {}),
        "model": next(each.record() for each in store.models if each.id == model),
        "columns": [
            {
                "name": source.column.name,
                "folder": source.folder,
                "rows": source.column.rows,
                "shape": list(source.column.shape),
                "dtype": source.column.dtype.name,
                "digests": [receipt.columns[source.column.name].digest for receipt in source.column.receipts],
            }
            for source in sources
        ],
    }


def _manifest_there(target: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an export that is there, if it is the one asked for; InputError otherwise."""
    refusal = InputError(f"{target} is there already and holds something else: give a new folder")
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text())
        known = [{key: column[key] for key in asked["columns"][0]} for column in manifest["columns"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refusal from error
    if {**manifest, "columns": known} != asked:
        raise refusal
    return manifest


def _publish(partial_folder: Path, target: Path) -> None:
    for path in sorted(partial_folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(partial_folder)
    if target.exists():
        target.rmdir()
    partial_folder.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
