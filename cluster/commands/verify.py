"""`thresher verify`: every receipt, every checksum."""

from typing import Annotated

import typer

from cluster.console import JsonFlag, emit, out, progress
from store import Store
from store.verify import Damage, repair_store, verify_store


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    store: Annotated[str, typer.Argument(help="Folder of the store.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every column and digest its content.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Withdraw damaged cells; the next harvest redoes them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Names every damaged cell and file; exits 1 where there is one."""
    opened = Store.open(store)
    cells = sum(1 for _ in opened.location.list("receipts"))
    with progress("verify", total=cells, unit="cells") as bar:
        damages = verify_store(opened, deep=deep, progress=bar.advance)
    withdrawn = repair_store(opened, damages) if repair else []
    data = {
        "store": opened.path,
        "ok": not damages,
        "complete": opened.complete,
        "cells": cells,
        "damaged": [
            {"path": d.path, "reason": d.reason, "cell": "/".join(d.cell) if d.cell else None} for d in damages
        ],
        "withdrawn": ["/".join(cell) for cell in withdrawn],
    }
    emit(as_json, data, lambda: _print(opened.path, cells, damages, len(withdrawn), repair))
    if damages:
        raise typer.Exit(1)


def _print(path: str, cells: int, damages: list[Damage], withdrawn: int, repair: bool) -> None:
    if not damages:
        out.print(f"{path}: {cells} cells, every checksum holds")
        return
    for damage in damages:
        out.print(f"[red]damaged[/] {damage.path}: {damage.reason}", soft_wrap=True)
    if repair:
        out.print(f"{withdrawn} cells withdrawn: run the harvest again, it computes exactly these")
    else:
        out.print("run with --repair to withdraw the damaged cells, then the harvest again")
