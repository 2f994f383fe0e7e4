"""Small stores with known content, made without any model."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

from store import ColumnSpec, ModelRef, PromptSet, Store, Unit
from store.model_files import ModelFile

COLUMNS = (
    ColumnSpec(name="resid_post.1", rows="token", settings={"site": "resid_post.1", "dtype": "bfloat16", "threads": 1}),
    ColumnSpec(name="scores.m", rows="prompt", settings={"sink": "scores", "dtype": "float32"}),
)
WIDTH = 24


def model_named(name: str) -> ModelRef:
    """A reference that is resolved already; no file of it exists."""
    file = ModelFile(role="weights", path="model.safetensors", size=1, mtime_ns=1, sha256=name.ljust(64, "0"))
    return ModelRef(name, files=(file,), base_folder="/nowhere")


def prompts_of(count: int, *, first: int = 0) -> PromptSet:
    return PromptSet.from_rows(
        [
            {"prompt_id": f"p{row}", "text": f"prompt number {row} " * 20, "group": f"g{row // 3}", "label": row % 2}
            for row in range(first, first + count)
        ]
    )


def cell_of(model: ModelRef, unit: Unit) -> tuple[dict[str, np.ndarray], pa.Table]:
    """The values of a cell, from the model and the unit alone: three tokens a prompt, the last two selected."""
    random = np.random.default_rng(int(unit.digest[:8], 16) ^ int(model.digest[:8], 16))
    rows = len(unit)
    columns: dict[str, np.ndarray] = {
        "resid_post.1": random.normal(size=(2 * rows, WIDTH)).astype(ml_dtypes.bfloat16),
        "scores.m": random.normal(size=(rows, 2)).astype(np.float32),
    }
    tokens = pa.table(
        {
            "prompt": pa.array(np.repeat(np.arange(rows), 3).astype(np.int32)),
            "position": pa.array(np.tile(np.arange(3), rows).astype(np.int32)),
            "token_id": pa.array(random.integers(0, 50_000, 3 * rows).astype(np.int32)),
            "role": pa.array(["user"] * (3 * rows)).dictionary_encode(),
            "selected": pa.array(np.tile([False, True, True], rows)),
        }
    )
    return columns, tokens


def fill(store: Store, model: ModelRef, *, most: int | None = None) -> int:
    """Publishes the missing cells of a model, `most` at the most; returns how many."""
    captures = store.register(COLUMNS)
    store.want(model, captures)
    missing = store.missing(model, captures)[:most]
    for unit, lacking in missing:
        columns, tokens = cell_of(model, unit)
        for capture in lacking:
            notes: dict[str, Any] = {"quarantined": []}
            store.publish(model, unit, capture, {name: columns[name] for name in capture.names}, tokens, notes)
    return len(missing)


def filled_store(folder: Path, count: int = 1200) -> tuple[Store, ModelRef]:
    store = Store.create(folder, prompts_of(count))
    model = model_named("a")
    fill(store, model)
    return store, model
