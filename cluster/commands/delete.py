"""`thresher delete`: withdraws a model's or a capture's cells."""

from typing import Annotated

import typer

from cluster.console import JsonFlag, emit, out, progress
from store import InputError, Store
from store.removal import cells_of, delete_cells


def register(app: typer.Typer) -> None:
    app.command("delete")(delete)


def delete(
    store: Annotated[str, typer.Argument(help="The store.")],
    model: Annotated[str | None, typer.Option(help="Id of a model, as 'thresher info' shows it.")] = None,
    capture: Annotated[str | None, typer.Option(help="Number of a capture, e.g. 0001.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Withdraws cells, receipts first. Asks before it acts; what is deleted has to be computed again."""
    if (model is None) == (capture is None):
        raise InputError("say what to delete: --model ID or --capture NUMBER, one of them")
    opened = Store.open(store)
    cells = cells_of(opened, model=model, capture=capture)
    if not yes and not typer.confirm(f"Delete {len(cells)} cells of {model or capture} from {store}?", err=True):
        raise typer.Exit(3)
    with progress("delete", total=len(cells), unit="cells") as bar:
        deleted = delete_cells(opened, model=model, capture=capture, progress=bar.advance)
    emit(as_json, {"store": opened.path, "deleted": deleted}, lambda: out.print(f"{deleted} cells deleted"))
