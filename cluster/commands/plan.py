"""`thresher plan`: what a harvest would compute and write, before anything runs."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from analysis.sinks import MomentsSink, second_moments_bytes
from cluster.console import JsonFlag, emit, make_pool, out, progress
from cluster.harvest_options import HarvestOptions, with_harvest_options
from cluster.harvest_request import HarvestRequest
from cluster.sinks import free_bytes, second_moments_room
from harvest.plan import HarvestPlan, plan_harvest
from harvest.widths import site_widths
from store import InputError, ModelRef, Sink, Store
from store.location import locate
from store.prompt_batches import read_batches


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


@with_harvest_options
def plan(
    options: HarvestOptions,
    tokens_per_second: Annotated[
        float | None, typer.Option("--tokens-per-second", help="Of one device, for device-hours; a harvest prints it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Says what 'thresher harvest' with the same arguments or run file would still compute. Writes nothing.

    Cells, prompts, tokens, bytes and FLOPs; no weight is loaded. What the harvest would refuse is refused.
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < math.inf:
        raise InputError("--tokens-per-second is a number above 0")
    make_pool(options.pool, options.workers)
    request = HarvestRequest.of(options)
    store = Store.planned(options.store, request.prompts)
    with progress("plan", total=len(request.prompts), unit="prompts") as bar:
        found = plan_harvest(
            store,
            request.job(store),
            known_bytes=_moments_bytes(request.sinks, request.model),
            progress=lambda done: bar.advance(done - bar.done),
        )
    second_moments_room(request.sinks, request.model, request.prompts, options.store)
    sealed = sum(len(batch.units) for batch in read_batches(locate(options.store)))
    data = {
        "store": store.path,
        "model": request.model.id,
        "units_new": found.units - sealed,
        **as_data(found),
        "free_bytes": free_bytes(options.store),
        "tokens_per_second": tokens_per_second,
        "device_hours": None if tokens_per_second is None else found.device_hours(tokens_per_second),
    }
    emit(as_json, data, lambda: _print(data))
    if not found.cells_missing:
        raise typer.Exit(3)


def as_data(plan: HarvestPlan) -> dict[str, Any]:
    """JSON of a plan. `bytes` are those of the columns before compression, so an upper bound of what is written."""
    return {
        "units": plan.units,
        "units_missing": plan.units_missing,
        "cells_missing": plan.cells_missing,
        "prompts": plan.prompts,
        "prompts_missing": plan.prompts_missing,
        "tokens": plan.tokens,
        "tokens_kept": plan.tokens_kept,
        "columns": [
            {
                "name": name,
                "units_missing": column.units_missing,
                "units_published": plan.units - column.units_missing,
                "bytes": column.bytes,
            }
            for name, column in plan.columns.items()
        ],
        "bytes": plan.bytes,
        "flops": plan.flops,
    }


def _moments_bytes(sinks: Sequence[Sink], model: ModelRef) -> dict[str, int]:
    """Bytes of a unit of moments with second moments: at width 8,192 too many to try them out."""
    asked = [sink for sink in sinks if isinstance(sink, MomentsSink) and sink.second_moments]
    widths = site_widths(model, [sink.site for sink in asked]) if asked else {}
    sizes: dict[str, int] = {}
    for sink in asked:
        width, values = widths[sink.site], len(sink.values)
        square = second_moments_bytes(width=width, values=values, folds=sink.folds)
        sizes |= zip(sink.columns, (16 * width * values * sink.folds, 8 * values * sink.folds, square), strict=True)
    return sizes


def _print(data: dict[str, Any]) -> None:
    out.print(f"[bold]{data['store']}[/]  {data['model']}")
    new = f", {data['units_new']:,} of them new" if data["units_new"] else ""
    out.print(f"{data['prompts']:,} prompts in {data['units']:,} units{new}")
    if not data["cells_missing"]:
        out.print("[green]nothing to do[/]: every cell is published")
        return
    out.print(
        f"{data['cells_missing']:,} cells missing in {data['units_missing']:,} units: {data['prompts_missing']:,} "
        f"prompts, {data['tokens']:,} tokens to read, {data['tokens_kept']:,} kept"
    )
    table = Table("column", "units missing", "published", "bytes before compression")
    for column in data["columns"]:
        size = "not known" if column["bytes"] is None else f"{column['bytes']:,}"
        table.add_row(column["name"], f"{column['units_missing']:,}", f"{column['units_published']:,}", size)
    out.print(table)
    size, free = data["bytes"], data["free_bytes"]
    room = "" if free is None else f"; {free / 1e9:,.3f} GB free on the disk"
    out.print("the size is not known" + room if size is None else f"at most {size / 1e9:,.3f} GB to write" + room)
    if size is not None and free is not None and size > free:
        out.print("[yellow]more than is free[/]: it may fit after compression, or choose another disk, sites or tokens")
    out.print(f"{data['flops']:.3g} FLOP forward: 2 × parameters of the blocks that run × tokens")
    if data["device_hours"] is None:
        out.print("device-hours: give --tokens-per-second X, as a harvest of a few hundred prompts prints it")
    else:
        out.print(f"{data['device_hours']:,.3g} device-hours at {data['tokens_per_second']:,.0f} tokens/s")
