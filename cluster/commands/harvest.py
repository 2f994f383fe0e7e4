"""`thresher harvest`: prompts through a model, activations or what sinks make of them into a store."""

from typing import Any

import typer

from cluster.certificates import print_certificate
from cluster.console import JsonFlag, emit, err, make_pool, out, progress
from cluster.harvest_options import HarvestOptions, with_harvest_options
from cluster.harvest_request import HarvestRequest
from cluster.sinks import second_moments_room
from harvest import HarvestResult, Progress
from harvest import harvest as run_harvest
from harvest.loading import check_device
from harvest.outcome import CellNotes
from harvest.plan import missing_cells
from store import Store


def register(app: typer.Typer) -> None:
    app.command("harvest")(harvest)


@with_harvest_options
def harvest(options: HarvestOptions, as_json: JsonFlag = False) -> None:
    """Runs prompts through a model and stores the activations asked for, or what sinks make of them. Rerun to resume.

    One pass feeds all that is asked for; projections, scores and log-probabilities have a row per token of --tokens.
    """
    pool = make_pool(options.pool, options.workers)
    request = HarvestRequest.of(options)
    if options.pool == "local":
        check_device(options.device)
    # All that can be refused is refused before anything is written.
    planned = Store.planned(options.store, request.prompts)
    missing_cells(planned, request.job(planned))
    if room := second_moments_room(request.sinks, request.model, request.prompts, options.store):
        err.print(f"second moments: up to {room / 1e9:,.3f} GB on the disk, before compression")
    opened = Store.create(options.store, request.prompts)
    with progress("harvest", total=len(request.prompts), unit="prompts") as bar:

        def advance(done: Progress) -> None:
            bar.advance(done.prompts - bar.done, tokens=done.tokens)

        result = run_harvest(
            request.model,
            opened,
            request.spec,
            sinks=request.sinks,
            tokens=request.tokens,
            pool=pool,
            settings=request.settings,
            device=options.device,
            certificate_prompts=options.certificate,
            truncate=request.truncate,
            max_quarantined=options.max_quarantined,
            progress=advance,
        )
    emit(as_json, as_data(result), lambda: _print(result))
    for error in result.errors:
        err.print(f"thresher: {error}", markup=False)
    if not result.complete:
        raise typer.Exit(2)
    if result.certificate is not None and not result.certificate.ok:
        raise typer.Exit(1 if result.certificate.left_out is None else 2)


def as_data(result: HarvestResult) -> dict[str, Any]:
    """The JSON of `thresher harvest`. `tokens_per_second` is of what this run computed."""
    return {
        "store": result.store.path,
        "digest": result.digest,
        "complete": result.complete,
        "prompts": result.prompts,
        "tokens": result.tokens,
        "computed_tokens": result.computed_tokens,
        "seconds": round(result.seconds, 3),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "quarantined": list(result.quarantined),
        "errors": list(result.errors),
        "notes": result.notes.record(),
        "certificate": None if result.certificate is None else result.certificate.record(),
    }


def _print(result: HarvestResult) -> None:
    if result.complete:
        state = "[green]complete[/]"
    elif result.errors or not result.quarantined:
        state = "[yellow]incomplete: run the same command again[/]"
    else:
        state = "[yellow]incomplete: more prompts are quarantined than --max-quarantined allows[/]"
    out.print(f"[bold]{result.store.path}[/]  {state}")
    out.print(f"{result.prompts:,} prompts, {result.tokens:,} tokens", end="; ")
    if result.computed_tokens:
        rate = f"{result.tokens_per_second:,.0f} tokens/s"
        out.print(f"{result.computed_tokens:,} computed now in {result.seconds:,.1f} s ({rate})")
    else:
        out.print("nothing was missing, nothing was computed")
    out.print(f"digest {result.digest}")
    for entry in result.quarantined:
        out.print(f"[yellow]quarantined[/] {entry['prompt_id']}: {entry['reason']}")
    _print_notes(result.notes)
    if result.certificate is not None:
        print_certificate(result.certificate)
    else:
        out.print("not certified: no activations as they are were stored, or --certificate 0 was given")


def _print_notes(notes: CellNotes) -> None:
    """What a reader of the numbers has to know; nothing where all is as it should be."""
    for site, count in notes.nonfinite.items():
        out.print(f"[red]NaN or infinite[/] {site}: {count:,} values")
    if notes.truncated:
        out.print(f"[yellow]cut to the context[/]: {notes.truncated:,} prompts")
    if notes.halved or notes.unshared:
        out.print(
            f"[yellow]short memory[/]: {notes.halved:,} batches halved, {notes.unshared:,} beginnings not shared; "
            "last bits may differ from an undisturbed run"
        )
    for name, values in notes.differing.items():
        said = " and ".join(str(value) for value in values)
        out.print(f"[yellow]cells were made with different {name}[/] ({said}): last bits may differ between them")
