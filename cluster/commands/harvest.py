"""`thresher harvest`: prompts through a model, activations or what sinks make of them into a store."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cluster.certificates import print_certificate
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
from cluster.sinks import SinkOptions, build_sinks, second_moments_room
from harvest import HarvestResult, NumericSettings, Progress
from harvest import harvest as run_harvest
from harvest.encoding import check_prompts
from harvest.loading import check_sites, context_of, count_layers, load_config, load_tokenizer
from harvest.settings import machine_threads
from store import CaptureSpec, InputError, ModelRef, PromptSet, Sink, Store, expand_sites
from store.capture_spec import check_tokens


def register(app: typer.Typer) -> None:
    app.command("harvest")(harvest)


def harvest(
    model: Annotated[str, typer.Argument(help="Folder of safetensors, a .gguf file, or a hub id.")],
    prompts: Annotated[str, typer.Argument(help="JSONL, JSON array, CSV, Parquet or a saved dataset.")],
    store: Annotated[str, typer.Option("--out", help="Folder of the store; made, resumed or extended.")],
    sites: Annotated[
        str | None, typer.Option("--sites", help="resid_post.15,resid_post.20 or resid_post.8-20 or resid_post.*")
    ] = None,
    tokens: Annotated[str, typer.Option(help="all, last, response, span, every:K or role:NAME.")] = "all",
    reduce: Annotated[str, typer.Option(help="none, mean, max, last or ema:ALPHA.")] = "none",
    raw: Annotated[bool, typer.Option("--raw/--no-raw", help="Store the activations themselves.")] = True,
    moments: Annotated[
        str | None,
        typer.Option("--moments", metavar="LABEL", help="Count, mean and variance at --sites by value of LABEL."),
    ] = None,
    folds: Annotated[int, typer.Option(min=1, help="Folds of the moments, by hash of the group.")] = 5,
    second_moments: Annotated[
        bool, typer.Option("--second-moments", help="Covariances too: 8 width² bytes a value, fold, site and unit.")
    ] = False,
    directions: Annotated[
        str | None, typer.Option("--directions", metavar="FILE", help="Each token's projections on these directions.")
    ] = None,
    exemplars: Annotated[
        int | None, typer.Option("--exemplars", min=1, help="Top and bottom prompts of each direction to keep.")
    ] = None,
    probes: Annotated[
        list[str] | None, typer.Option("--probe", metavar="FILE", help="Each token's score by this probe; repeatable.")
    ] = None,
    log_prob: Annotated[bool, typer.Option("--log-prob", help="Each token's log-probability and entropy.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Activations at --sites as int8 with a scale per row.")] = False,
    adapter: AdapterOption = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    dtype: DtypeOption = "bfloat16",
    pool: PoolOption = "local",
    workers: WorkersOption = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads of each worker; part of the columns' keys.")
    ] = None,
    share_prefixes: Annotated[
        bool, typer.Option("--share-prefixes/--no-share-prefixes", help="Run beginnings that prompts share once.")
    ] = True,
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Batches without padding.")] = True,
    quantization: Annotated[
        str, typer.Option(help="Of the weights as they are loaded: none, 8bit or 4bit, by bitsandbytes.")
    ] = "none",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, or auto to spread the model over a worker's devices.")
    ] = None,
    certificate: Annotated[
        int, typer.Option("--certificate", min=0, help="Prompts to run again alone in float32; 0 leaves it out.")
    ] = 4,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut prompts longer than the model's context.")] = False,
    max_quarantined: Annotated[int, typer.Option(min=0, help="Prompts that may fail alone.")] = 0,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    label_column: LabelColumnOption = None,
    group_column: GroupColumnOption = None,
    response_column: ResponseColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Runs prompts through a model and stores the activations asked for, or what sinks make of them. Rerun to resume.

    One pass feeds all that is asked for; projections, scores and log-probabilities have a row per token of --tokens.
    """
    spec = _raw_spec(raw, sites, tokens, reduce)
    options = SinkOptions(
        sites=sites,
        moments=moments,
        folds=folds,
        second_moments=second_moments,
        directions=directions,
        exemplars=exemplars,
        probes=tuple(probes or ()),
        log_prob=log_prob,
        int8=int8,
    )
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
    settings = NumericSettings(
        threads=threads or machine_threads(), share_prefixes=share_prefixes, pack=pack, quantization=quantization
    )
    sinks = build_sinks(options, reference, prompt_set)
    check_harvest(reference, spec, sinks, prompt_set, tokens=tokens, truncate=truncate)
    if room := second_moments_room(sinks, reference, prompt_set, store):
        err.print(f"second moments: up to {room / 1e9:,.3f} GB on the disk, before compression")
    opened = Store.create(store, prompt_set)
    with progress("harvest", total=len(prompt_set), unit="prompts") as bar:

        def advance(done: Progress) -> None:
            bar.advance(done.prompts - bar.done, tokens=done.tokens)

        result = run_harvest(
            reference,
            opened,
            spec,
            sinks=sinks,
            tokens=tokens,
            pool=workers_of,
            settings=settings,
            device=device,
            certificate_prompts=certificate,
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
        raise typer.Exit(1 if result.certificate.left_out is None else 2)


def _raw_spec(raw: bool, sites: str | None, tokens: str, reduce: str) -> CaptureSpec | None:
    """What is stored of activations themselves; None with --no-raw."""
    if raw:
        if sites is None:
            raise InputError("no site is named: give --sites resid_post.15, or --no-raw to store no activations")
        return CaptureSpec(sites=sites, tokens=tokens, reduce=reduce)
    check_tokens(tokens)
    if reduce != "none":
        raise InputError("--reduce is of raw activations, and --no-raw stores none: leave one of the two out")
    return None


def check_harvest(
    model: ModelRef, spec: CaptureSpec | None, sinks: Sequence[Sink], prompts: PromptSet, *, tokens: str, truncate: bool
) -> None:
    """Raises InputError for what the model cannot take, before anything is written."""
    if spec is None and not sinks:
        raise InputError("--no-raw leaves nothing to store: add --moments, --directions, --probe, --log-prob or --int8")
    raw = () if spec is None else (str(site) for site in expand_sites(spec.sites, count_layers(model)))
    check_sites(model, tuple(dict.fromkeys((*raw, *(site for sink in sinks for site in sink.sites)))))
    context = None if truncate else context_of(load_config(model).get_text_config(decoder=True))
    check_prompts(load_tokenizer(model), [prompts.table], context=context, tokens=tokens)


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
        print_certificate(result.certificate)
