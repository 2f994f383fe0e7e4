"""Writes the golden store of the present format: `python -m tests.golden.make`. Never again for a format that is out.

tests/golden/<format>/ is the store, tests/golden/<format>.json what was put into it, told by the values themselves and
not by reading them back. Every later version must read every one of them (test_golden.py).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

import store.summary
from store import ColumnSpec, ModelRef, PromptSet, Store, Unit
from store.model_files import ModelFile
from store.root import FORMAT

FOLDER = Path(__file__).parent
WIDTH = 16
RAW = (
    ColumnSpec(name="resid_post.2", rows="token", settings={"site": "resid_post.2", "dtype": "bfloat16", "threads": 1}),
    ColumnSpec(name="int8.resid_post.2", rows="token", settings={"site": "resid_post.2", "dtype": "int8"}),
    ColumnSpec(name="scales.resid_post.2", rows="token", settings={"site": "resid_post.2", "dtype": "float32"}),
)
REDUCED = (
    ColumnSpec(name="resid_post.*/mean", rows="prompt", settings={"reduce": "mean", "dtype": "float32"}),
    ColumnSpec(name="moments.resid_post.2", rows="unit", settings={"sink": "moments", "dtype": "float64"}),
)


def prompts_up_to(count: int) -> PromptSet:
    rows: list[dict[str, Any]] = [
        {"prompt_id": f"p{row}", "text": f"Prompt {row}: größer als ∑ 数 🙂", "group": f"g{row // 2}", "label": row % 3}
        for row in range(count)
    ]
    return PromptSet.from_rows(rows)


def model_named(name: str) -> ModelRef:
    weights = ModelFile(
        role="weights", path="model.safetensors", size=1, mtime_ns=1, sha256=hashlib.sha256(name.encode()).hexdigest()
    )
    return ModelRef(name, files=(weights,), base_folder="/nowhere")


def content(model: ModelRef, unit: Unit) -> tuple[dict[str, np.ndarray], pa.Table]:
    """Three tokens a prompt, of which the last two are selected; row 0 holds what floats hold beside numbers."""
    random = np.random.default_rng(int(hashlib.sha256(f"{model.name} {unit.name}".encode()).hexdigest()[:8], 16))
    rows = len(unit)
    raw = random.normal(size=(2 * rows, WIDTH)).astype(np.float32)
    scales = np.abs(raw).max(axis=1).astype(np.float32) / 127
    quantised = np.round(raw / scales[:, None]).astype(np.int8)
    raw[0, :4] = [np.inf, -np.inf, np.nan, -0.0]
    columns = {
        "resid_post.2": raw.astype(ml_dtypes.bfloat16),
        "int8.resid_post.2": quantised,
        "scales.resid_post.2": scales,
        "resid_post.*/mean": random.normal(size=(rows, WIDTH)).astype(np.float32),
        "moments.resid_post.2": random.normal(size=(2, WIDTH)),
    }
    tokens = pa.table(
        {
            "prompt": pa.array(np.repeat(np.arange(rows), 3), pa.int32()),
            "position": pa.array(np.tile(np.arange(3), rows), pa.int32()),
            "token_id": pa.array(random.integers(0, 50_000, 3 * rows), pa.int32()),
            "role": pa.array(["system", "user", "assistant"] * rows).dictionary_encode(),
            "selected": pa.array([False, True, True] * rows),
        }
    )
    return columns, tokens


def told(opened: Store, model: ModelRef, groups: tuple[tuple[ColumnSpec, ...], ...]) -> dict[str, Any]:
    """What should be read of each column: dtype, shape, SHA-256 of its bytes in C order, and values for the eye."""
    parts = [content(model, unit) for unit in opened.units]
    columns: dict[str, Any] = {}
    for spec in (spec for group in groups for spec in group):
        values = np.concatenate([columns[spec.name] for columns, _ in parts])
        columns[spec.name] = {
            "rows": spec.rows,
            "key": spec.key,
            "dtype": values.dtype.name,
            "shape": list(values.shape),
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
            "last_row": values[-1].astype(np.float64).reshape(-1).tolist(),
        }
    ids = [token for _, table in parts for token in table.column("token_id").to_pylist()]
    return {"columns": columns, "token_ids": ids}


def main() -> None:
    place = FOLDER / str(FORMAT)
    if place.exists():
        raise SystemExit(f"{place} is there: a golden store is written once")
    opened = Store.create(place, prompts_up_to(4))
    models = {"tiny-base": (RAW, REDUCED), "tiny-tuned": (REDUCED,)}
    for count in (4, 9, 12):
        opened = Store.create(place, prompts_up_to(count))
        for name, groups in models.items():
            model = model_named(name)
            for group in groups:
                captures = opened.register(group)
                opened.want(model, captures)
                for unit, (capture,) in opened.missing(model, captures):
                    columns, tokens = content(model, unit)
                    chosen = {spec.name: columns[spec.name] for spec in group}
                    opened.publish(model, unit, capture, chosen, tokens, {"quarantined": []})
    certificate = {"format": 1, "ok": True, "sites": {"resid_post.2": {"largest": 0.25, "median": 0.0078125}}}
    opened.write_certificate(model_named("tiny-base"), "0001", certificate)
    store.summary.FRESH_RECEIPTS = 1
    expected = {
        "digest": opened.digest,
        "units": [len(unit) for unit in opened.units],
        "prompt_ids": opened.prompts.prompt_ids,
        "certificate": certificate,
        "models": {model_named(name).id: told(opened, model_named(name), groups) for name, groups in models.items()},
    }
    (FOLDER / f"{FORMAT}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
