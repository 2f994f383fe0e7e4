"""`thresher export`: columns of a store in formats that others read."""

from typing import Annotated

import typer

from cluster.console import JsonFlag, emit, out, progress
from store import Store
from store.export import FORMATS, Export, export_store


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    store: Annotated[str, typer.Argument(help="The store.")],
    folder: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(FORMATS)}.")],
    model: Annotated[str | None, typer.Option(help="Id of the model, where the store has several.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="A column; may be repeated. All by default.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of one row of SAELens' format.")] = 128,
    as_json: JsonFlag = False,
) -> None:
    """Writes a folder per column: its values, and what its rows speak of."""
    opened = Store.open(store)
    with progress("export", total=len(column) if column else None, unit="columns") as bar:
        export = export_store(opened, folder, to=to, model=model, columns=column, context=context, progress=bar.advance)
    data = {
        "out": str(export.folder),
        "to": to,
        "columns": [
            {key: entry[key] for key in ("name", "folder", "rows", "shape", "dtype", "stored_as")}
            for entry in export.manifest["columns"]
        ],
        "bytes": export.bytes,
        "again": export.again,
    }
    emit(as_json, data, lambda: _print(export))


def _print(export: Export) -> None:
    state = "was there already" if export.again else "written"
    out.print(f"{export.folder}  {export.bytes / 1e6:,.1f} MB {state}", soft_wrap=True)
    for entry in export.manifest["columns"]:
        kind = entry["dtype"] if entry["dtype"] == entry["stored_as"] else f"{entry['dtype']} as {entry['stored_as']}"
        out.print(f"  {entry['folder']}/  {' × '.join(str(size) for size in entry['shape'])}  {kind}")
