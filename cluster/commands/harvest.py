"""`thresher harvest`: prompts through a model, activations into a store."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.console import (
    AdapterOption,
    DtypeOption,
    GroupColumnOption,
    JsonFlag,
    LabelColumnOption,
    MessagesColumnOption,
    PoolOption,
    ResponseColumnOption,
    TextColumnOption,
    WorkersOption,
    emit,
    err,
    make_pool,
    out,
    progress,
    read_prompts,
)
from harvest import HarvestResult, NumericSettings, Progress
from harvest import harvest as run_harvest
from harvest.encoding import check_prompts
from harvest.loading import check_sites, context_of, count_layers, load_config, load_tokenizer
from store import CaptureSpec, ModelRef, PromptSet, Store, expand_sites


def register(app: typer.Typer) -> None:
    app.command("harvest")(harvest)


def harvest(
    model: Annotated[str, typer.Argument(help="Folder of safetensors, a .gguf file, or a hub id.")],
    prompts: Annotated[str, typer.Argument(help="JSONL, JSON array, CSV, Parquet or a saved dataset.")],
    store: Annotated[str, typer.Option("--out", help="Folder of the store; made, resumed or extended.")],
    sites: Annotated[
        str, typer.Option("--sites", help="resid_post.15,resid_post.20 or resid_post.8-20 or resid_post.*")
    ],
    tokens: Annotated[str, typer.Option(help="all, last, response, span, every:K or role:NAME.")] = "all",
    reduce: Annotated[str, typer.Option(help="none, mean, max, last or ema:ALPHA.")] = "none",
    adapter: AdapterOption = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    dtype: DtypeOption = "bfloat16",
    pool: PoolOption = "local",
    workers: WorkersOption = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads of each worker; part of the columns' keys.")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut prompts longer than the model's context.")] = False,
    max_quarantined: Annotated[int, typer.Option(min=0, help="Prompts that may fail alone.")] = 0,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    label_column: LabelColumnOption = None,
    group_column: GroupColumnOption = None,
    response_column: ResponseColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Runs prompts through a model and stores the activations asked for. Rerun to resume."""
    spec = CaptureSpec(sites=sites, tokens=tokens, reduce=reduce)
    workers_of = make_pool(pool, workers)
    prompt_set = read_prompts(
        prompts,
        text=text_column,
        messages=messages_column,
        label=label_column,
        group=group_column,
        response=response_column,
    )
    reference = ModelRef(model, revision=revision, adapter=adapter, dtype=dtype).resolve()
    settings = NumericSettings() if threads is None else NumericSettings(threads=threads)
    check_harvest(reference, spec, prompt_set, truncate=truncate)
    opened = Store.create(store, prompt_set)
    with progress("harvest", total=len(prompt_set), unit="prompts") as bar:

        def advance(done: Progress) -> None:
            bar.advance(done.prompts - bar.done, tokens=done.tokens)

        result = run_harvest(
            reference,
            opened,
            spec,
            pool=workers_of,
            settings=settings,
            truncate=truncate,
            max_quarantined=max_quarantined,
            progress=advance,
        )
    emit(as_json, as_data(result), lambda: _print(result))
    for error in result.errors:
        err.print(f"thresher: {error}", markup=False)
    if not result.complete:
        raise typer.Exit(2)
    if result.certificate is not None and not result.certificate.ok:
        raise typer.Exit(1)


def check_harvest(model: ModelRef, spec: CaptureSpec, prompts: PromptSet, *, truncate: bool) -> None:
    """Raises InputError for what the model cannot take, before anything is written."""
    check_sites(model, tuple(str(site) for site in expand_sites(spec.sites, count_layers(model))))
    context = None if truncate else context_of(load_config(model).get_text_config(decoder=True))
    check_prompts(load_tokenizer(model), [prompts.table], context=context, tokens=spec.tokens)


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
        "certificate": None if result.certificate is None else result.certificate.record(),
    }


def _print(result: HarvestResult) -> None:
    state = "[green]complete[/]" if result.complete else "[yellow]incomplete: run the same command again[/]"
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
    if result.certificate is not None:
        table = Table("site", "rows", "largest error", "bound", "median error", "bound", "")
        for name, site in result.certificate.sites.items():
            values = asdict(site)
            table.add_row(
                name,
                str(values["rows"]),
                f"{values['largest']:.2e}",
                f"{values['bound_largest']:g}",
                f"{values['median']:.2e}",
                f"{values['bound_median']:g}",
                "[green]holds[/]" if site.ok else "[red]exceeded[/]",
            )
        out.print("certificate: sampled prompts run again alone in float32, relative error of the stored rows")
        out.print(table)
