"""The options of `thresher harvest`. `thresher plan` takes the same, and run files have a key for each."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cluster.console import (
    AdapterOption,
    DtypeOption,
    GroupColumnOption,
    LabelColumnOption,
    MessagesColumnOption,
    PoolOption,
    ResponseColumnOption,
    TextColumnOption,
    TruncateOption,
    WorkersOption,
)
from cluster.run_file import Beside, is_run_file, read_run_file
from store import InputError


def _take_run_file(context: typer.Context, model: str) -> str:
    """Where a run file stands for the model: its model. Its other lines hold where the command line says nothing."""
    if not is_run_file(model):
        return model
    values = read_run_file(model, HarvestOptions)
    if "model" not in values:
        raise InputError(f"{model} does not say 'model': add a line 'model: …'")
    context.default_map = values
    return str(values["model"])


@dataclass(frozen=True, kw_only=True)
class HarvestOptions:
    """What a user says of a harvest, as it was said: nothing is read or checked yet."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN.YAML",
            help="Folder of safetensors, a .gguf file, or a hub id; or a run file, whose lines are options.",
            is_eager=True,
            callback=_take_run_file,
        ),
        Beside.IF_THERE,
    ]
    prompts: Annotated[str, typer.Argument(help="JSONL, JSON array, CSV, Parquet or a saved dataset."), Beside.ALWAYS]
    store: Annotated[str, typer.Option("--out", help="Folder of the store; made, resumed or extended."), Beside.ALWAYS]
    sites: Annotated[
        str | None, typer.Option("--sites", help="resid_post.15,resid_post.20 or resid_post.8-20 or resid_post.*")
    ] = None
    tokens: Annotated[str, typer.Option(help="all, last, response, span, every:K or role:NAME.")] = "all"
    reduce: Annotated[str, typer.Option(help="none, mean, max, last or ema:ALPHA.")] = "none"
    raw: Annotated[bool, typer.Option("--raw/--no-raw", help="Store the activations themselves.")] = True
    moments: Annotated[
        str | None,
        typer.Option("--moments", metavar="LABEL", help="Count, mean and variance at --sites by value of LABEL."),
    ] = None
    folds: Annotated[int, typer.Option(min=1, help="Folds of the moments, by hash of the group.")] = 5
    second_moments: Annotated[
        bool, typer.Option("--second-moments", help="Covariances too: 8 width² bytes a value, fold, site and unit.")
    ] = False
    directions: Annotated[
        str | None,
        typer.Option("--directions", metavar="FILE", help="Each token's projections on these directions."),
        Beside.ALWAYS,
    ] = None
    exemplars: Annotated[
        int | None, typer.Option("--exemplars", min=1, help="Top and bottom prompts of each direction to keep.")
    ] = None
    probes: Annotated[
        list[str] | None,
        typer.Option("--probe", metavar="FILE", help="Each token's score by this probe; repeatable."),
        Beside.ALWAYS,
    ] = None
    log_prob: Annotated[bool, typer.Option("--log-prob", help="Each token's log-probability and entropy.")] = False
    int8: Annotated[bool, typer.Option("--int8", help="Activations at --sites as int8 with a scale per row.")] = False
    adapter: Annotated[AdapterOption, Beside.IF_THERE] = None
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None
    dtype: DtypeOption = "bfloat16"
    pool: PoolOption = "local"
    workers: WorkersOption = 1
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads of each worker; part of the columns' keys.")
    ] = None
    share_prefixes: Annotated[
        bool, typer.Option("--share-prefixes/--no-share-prefixes", help="Run beginnings that prompts share once.")
    ] = True
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Batches without padding.")] = True
    quantization: Annotated[
        str, typer.Option(help="Of the weights as they are loaded: none, 8bit or 4bit, by bitsandbytes.")
    ] = "none"
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, or auto to spread the model over a worker's devices.")
    ] = None
    certificate: Annotated[
        int, typer.Option("--certificate", min=0, help="Prompts to run again alone in float32; 0 leaves it out.")
    ] = 4
    truncate: TruncateOption = False
    max_quarantined: Annotated[int, typer.Option(min=0, help="Prompts that may fail alone.")] = 0
    text_column: TextColumnOption = None
    messages_column: MessagesColumnOption = None
    label_column: LabelColumnOption = None
    group_column: GroupColumnOption = None
    response_column: ResponseColumnOption = None


def with_harvest_options(command: Callable[..., None]) -> Callable[..., None]:
    """For typer: `command`, which takes HarvestOptions and then parameters of its own, as one that takes them all."""
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        theirs = {parameter.name: given.pop(parameter.name) for parameter in own}
        command(HarvestOptions(**given), **theirs)

    # typer makes its options of what a function's signature says.
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*inspect.signature(HarvestOptions).parameters.values(), *own]
    )
    return run
