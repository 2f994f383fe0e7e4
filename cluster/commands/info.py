"""`thresher info`: what a store holds."""

from typing import Annotated, Any

import typer
from rich.table import Table

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
    captures = {capture.id: capture for capture in store.captures}
    tokens: dict[tuple[str, str], int] = {}
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    stored = 0
    for receipt in store.receipts():
        tokens[receipt.model, receipt.unit] = receipt.tokens
        stored += sum(size for size, _ in receipt.files.values())
        for name, column in receipt.columns.items():
            entry = columns.setdefault(
                (receipt.model, name),
                {
                    "model": receipt.model,
                    "name": name,
                    "key": column.key,
                    "rows": captures[receipt.capture].column(name).rows,
                    "dtype": column.dtype,
                    "shape": [0, *column.shape[1:]],
                    "units": 0,
                },
            )
            entry["shape"][0] += column.shape[0]
            entry["units"] += 1
    return {
        "store": store.path,
        "digest": store.digest,
        "complete": store.complete,
        "models": [
            {"id": model.id, "name": model.name, "adapter": model.adapter, "digest": model.digest}
            for model in store.models
        ],
        "columns": list(columns.values()),
        "prompts": len(store.prompts),
        "certified": all(record["ok"] for record in certificates) if (certificates := store.certificates()) else None,
        "units": len(store.units),
        "tokens": sum(tokens.values()),
        "bytes": stored,
    }


def _print(path: str, data: dict[str, Any]) -> None:
    state = "[green]complete[/]" if data["complete"] else "[yellow]incomplete: rerun the harvest, it resumes[/]"
    out.print(f"[bold]{path}[/]  {state}")
    out.print(
        f"{data['prompts']:,} prompts in {data['units']} units, {data['tokens']:,} tokens, "
        f"{data['bytes'] / 1e6:,.1f} MB"
    )
    out.print(f"digest {data['digest']}")
    if data["certified"] is False:
        out.print("[red]a certificate's bound was exceeded: rerun the harvest to see which site's[/]")
    table = Table("model", "column", "rows", "shape", "dtype", "units")
    for column in data["columns"]:
        shape = " × ".join(str(size) for size in column["shape"])
        units = f"{column['units']}/{data['units']}"
        table.add_row(column["model"], column["name"], column["rows"], shape, column["dtype"], units)
    out.print(table)
