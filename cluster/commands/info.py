"""`thresher info`: what a store holds."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.certificates import describe_certificates, print_certified
from cluster.console import JsonFlag, emit, out
from store import Store


def register(app: typer.Typer) -> None:
    app.command("info")(info)


def info(store: Annotated[str, typer.Argument(help="Folder of the store.")], as_json: JsonFlag = False) -> None:
    """Models, columns, prompts, tokens, bytes, digest, and whether the store is complete."""
    opened = Store.open(store)
    emit(as_json, (data := describe(opened)), lambda: _print(store, data))


def describe(store: Store) -> dict[str, Any]:
    """The JSON of `thresher info`. `tokens` counts every token a model read, once per model; `bytes` as stored."""
    summary = store.summary()
    rows = {column.key: column.rows for capture in store.captures for column in capture.columns}
    return {
        "store": store.path,
        "digest": summary.digest,
        "complete": summary.complete,
        "models": [
            {"id": model.id, "name": model.name, "adapter": model.adapter, "digest": model.digest}
            for model in store.models
        ],
        "columns": [
            {**asdict(column), "shape": list(column.shape), "rows": rows.get(column.key)} for column in summary.columns
        ],
        "prompts": store.units[-1].stop if store.units else 0,
        **describe_certificates(store),
        "units": len(store.units),
        "tokens": summary.tokens,
        "bytes": summary.bytes,
    }


def _print(path: str, data: dict[str, Any]) -> None:
    state = "[green]complete[/]" if data["complete"] else "[yellow]incomplete: rerun the harvest, it resumes[/]"
    out.print(f"[bold]{path}[/]  {state}")
    out.print(
        f"{data['prompts']:,} prompts in {data['units']} units, {data['tokens']:,} tokens, "
        f"{data['bytes'] / 1e6:,.1f} MB"
    )
    out.print(f"digest {data['digest']}")
    print_certified(data)
    table = Table("model", "column", "rows", "shape", "dtype", "units")
    for column in data["columns"]:
        shape = " × ".join(str(size) for size in column["shape"])
        units = f"{column['units']}/{data['units']}"
        table.add_row(column["model"], column["name"], column["rows"] or "unknown", shape, column["dtype"], units)
    out.print(table)
