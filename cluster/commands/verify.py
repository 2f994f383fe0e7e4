"""`thresher verify`: every receipt, every checksum, and with --deep the numbers themselves."""

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.certificates import print_certificate
from cluster.console import JsonFlag, emit, err, out, progress
from store import InputError, ModelRef, Store, ThresherError
from store.verify import REMADE, Damage, repair_store, verify_store

if TYPE_CHECKING:
    from harvest import Certificate


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    store: Annotated[str, typer.Argument(help="Folder of the store.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also digest every column's content, and run sampled prompts again in float32."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="With --deep: other prompts than those of the harvest.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Withdraw damaged cells; the next harvest redoes them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Names every damaged cell and file, and every site off its bound; exits 1 where there is one.

    Exits 2 where a model is not to be had here: what could not be checked is not clean.
    """
    if seed is not None and not deep:
        raise InputError("--seed chooses prompts to run again: add --deep")
    opened = Store.open(store)
    cells = sum(1 for _ in opened.location.list("receipts"))
    with progress("verify", total=cells, unit="cells") as bar:
        damages = verify_store(opened, deep=deep, progress=bar.advance)
    withdrawn = repair_store(opened, damages) if repair else []
    unrepaired = any(not repair or (damage.cell is None and not damage.path.startswith(REMADE)) for damage in damages)
    made = _certificates(opened, unrepaired, seed) if deep else []
    data = {
        "store": opened.path,
        "ok": not damages and all(certificate.ok for _, certificate in made),
        "complete": opened.complete,
        "cells": cells,
        "damaged": [
            {"path": d.path, "reason": d.reason, "cell": "/".join(d.cell) if d.cell else None} for d in damages
        ],
        "withdrawn": ["/".join(cell) for cell in withdrawn],
        "certificates": [
            {"model": model, **certificate.record(), "state": _state(certificate)} for model, certificate in made
        ],
    }
    emit(as_json, data, lambda: _print(opened.path, cells, damages, len(withdrawn), repair, made))
    states = {_state(certificate) for _, certificate in made}
    if damages or "exceeded" in states:
        raise typer.Exit(1)
    if "not certified" in states:
        raise typer.Exit(2)


def _state(certificate: "Certificate") -> str:
    if certificate.left_out is not None:
        return "not certified"
    return "holds" if certificate.ok else "exceeded"


def _certificates(store: Store, damaged: bool, seed: int | None) -> list[tuple[str, "Certificate"]]:
    """Certificates of all models, kept in the store where they were measured, so that `info` shows them."""
    # Imported here: torch takes seconds to import, and without --deep nothing is run.
    from harvest import Certificate
    from harvest.recertify import recertify

    if damaged:
        reason = "the store has damage: run with --repair, then the harvest, then this again"
        models = sorted({model for model, _ in store.wanted()})
        return [(model, Certificate(prompts=(), sites={}, left_out=reason)) for model in models]
    made: list[tuple[str, Certificate]] = []
    for model in store.models:
        for key, certificate in recertify(store, model, seed=seed):
            made.append((model.id, certificate))
            if certificate.left_out is None:
                _keep(store, model, key, certificate)
    return made


def _keep(store: Store, model: ModelRef, key: str, certificate: "Certificate") -> None:
    try:
        store.write_certificate(model, key, certificate.record())
    except ThresherError as error:
        # A store may be read-only: what was measured is told all the same.
        err.print(f"thresher: the certificate is not kept: {error}", markup=False, soft_wrap=True)


def _print(
    path: str,
    cells: int,
    damages: list[Damage],
    withdrawn: int,
    repair: bool,
    made: list[tuple[str, "Certificate"]],
) -> None:
    for damage in damages:
        out.print(f"[red]damaged[/] {damage.path}: {damage.reason}", soft_wrap=True)
    if not damages:
        out.print(f"{path}: {cells} cells, every checksum holds")
    elif repair:
        out.print(f"{withdrawn} cells withdrawn: run the harvest again, it computes exactly these")
    else:
        out.print("run with --repair to withdraw the damaged cells, then the harvest again")
    for model, certificate in made:
        out.print(f"[bold]{model}[/]")
        print_certificate(certificate)
