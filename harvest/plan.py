"""What a harvest has to compute: decided here for the harvest itself, and told by `thresher plan` before one runs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harvest.cost import Cost
from harvest.encoding import check_prompts, encode
from harvest.execution import Missing
from harvest.loading import check_sites, context_of, load_config, load_tokenizer, skeleton
from harvest.raw_sink import RawSink
from harvest.selection import selected_tokens
from harvest.settings import NumericSettings
from harvest.worker import Job, column_settings, sites_of
from store import Capture, CaptureSpec, ColumnSpec, ModelRef, Sink, Store, Unit
from store.capture_spec import check_tokens
from store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """What one column lacks: in how many units, and the bytes of it there, before compression.

    bytes  None where a `module:` path hides the width. Nothing else that a cell has (token table, receipt) is counted
    """

    units_missing: int
    bytes: int | None


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """What one harvest would compute and write: its missing units alone.

    units          of the store, those that it would open included; `units_missing` of them lack a cell
    cells_missing  to be published
    prompts        of the store; `prompts_missing` of them in missing units
    tokens         to be read, once each: what prefixes share is counted in every prompt. `tokens_kept` of them selected
    columns        all that are asked for, and those that have to be computed with them because they share a cell
    flops          of the forward passes: 2 × parameters of the blocks that run × tokens. Attention to other tokens,
                   embeddings, an adapter and the lm_head are not counted, and all experts of a mixture are
    """

    units: int
    units_missing: int
    cells_missing: int
    prompts: int
    prompts_missing: int
    tokens: int
    tokens_kept: int
    columns: Mapping[str, ColumnPlan]
    flops: int

    @property
    def bytes(self) -> int | None:
        """Of all columns; None where one is not known."""
        known = [column.bytes for column in self.columns.values() if column.bytes is not None]
        return sum(known) if len(known) == len(self.columns) else None

    def device_hours(self, tokens_per_second: float) -> float:
        """Hours of one device that reads so many tokens per second."""
        return self.tokens / tokens_per_second / 3600


def plan_harvest(
    store: Store,
    job: Job,
    *,
    known_bytes: Mapping[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> HarvestPlan:
    """What a harvest with this job would do. Writes to no store that `Store.planned` gives.

    known_bytes  column -> bytes of a unit, for columns that are too large to be tried out: a sink is run on no rows to
                 see what it makes of a unit, unless all its columns are known
    progress     told how many prompts have been tokenised

    Raises InputError as `harvest` does.
    """
    job, _, missing = missing_cells(store, job)
    tokenizer, context = load_tokenizer(job.model), context_of(load_config(job.model).get_text_config(decoder=True))
    cost = Cost.of(job, known_bytes or {})
    sizes: dict[str, int | None] = {name: 0 for sink in job.sinks for name in sink.columns}
    lacking = Counter(name for _, absent in missing for capture in absent for name in capture.names)
    read = kept = flops = prompts = 0
    for unit, absent in missing:
        table = store.unit_prompts(unit)
        encoded = encode(tokenizer, table, context=context, truncate=job.truncate)
        selected = sum(int(np.count_nonzero(selected_tokens(prompt, job.tokens))) for prompt in encoded)
        names = {name for capture in absent for name in capture.names}
        needed = [sink for sink in cost.sinks if names & sink.columns.keys()]
        for sink in needed:
            found = cost.bytes_of(sink, unit, table, selected)
            for name in names & sink.columns.keys():
                before, size = sizes[name], found.get(name)
                sizes[name] = None if before is None or size is None else before + size
        here = sum(len(prompt) for prompt in encoded)
        read, kept, prompts = read + here, kept + selected, prompts + len(unit)
        flops += 2 * cost.parameters(needed) * here
        if progress is not None:
            progress(prompts)
    return HarvestPlan(
        units=len(store.units),
        units_missing=len(missing),
        cells_missing=sum(len(absent) for _, absent in missing),
        prompts=sum(len(unit) for unit in store.units),
        prompts_missing=prompts,
        tokens=read,
        tokens_kept=kept,
        columns={name: ColumnPlan(units_missing=lacking[name], bytes=size) for name, size in sizes.items()},
        flops=flops,
    )


def job_of(
    model: ModelRef,
    store: Store,
    spec: CaptureSpec | None,
    *,
    sinks: Sequence[Sink] = (),
    tokens: str | None = None,
    settings: NumericSettings | None = None,
    truncate: bool = False,
    device: str | None = None,
) -> Job:
    """What the arguments of `harvest` ask of a worker. Raises InputError for sites and tokens there are not."""
    model = model.resolve()
    return Job(
        model=model,
        store_path=store.path,
        sinks=(*_raw_sinks(model, spec), *sinks),
        tokens=_token_selection(spec, tokens),
        settings=settings or NumericSettings(),
        truncate=truncate,
        device=device,
    )


def missing_cells(store: Store, job: Job) -> tuple[Job, list[Capture], list[Missing]]:
    """The job with all it has to compute, its captures, and the units with the ones they lack.

    Registers columns that are not registered yet. What can be refused is refused before that: over a store that
    `Store.planned` gives, nothing else happens.
    """
    columns = [
        ColumnSpec(name=name, rows=rows, settings=column_settings(sink, name, job=job))
        for sink in job.sinks
        for name, rows in sink.columns.items()
    ]
    if not columns:
        raise InputError("nothing to harvest: give a CaptureSpec or at least one sink")
    check_sites(job.model, sites_of(job.sinks))
    made = {column.name for column in columns}
    known = made <= set(store.columns)
    if not known:
        _check_units(store, job, store.units)
    captures = store.register(columns)
    missing = store.missing(job.model, captures)
    if known:
        _check_units(store, job, [unit for unit, _ in missing])
    lacking = {capture.id for _, absent in missing for capture in absent}
    extra = [sink for capture in captures if capture.id in lacking for sink in _companions(store, job, capture, made)]
    if extra:
        check_sites(job.model, sites_of(extra))
    return replace(job, sinks=(*job.sinks, *extra)), captures, missing


def _companions(store: Store, job: Job, capture: Capture, made: set[str]) -> list[Sink]:
    """Raw sinks for the columns that were registered with those asked for: a cell holds all of its capture.

    They share the settings of the raw column they were registered with. Other sinks' columns cannot be made from
    their settings alone: those are asked for.
    """
    unasked = [name for name in capture.names if name not in made]
    pattern = next((sink for sink in job.sinks if isinstance(sink, RawSink) and sink.sites[0] in capture.names), None)
    raw = [name for name in unasked if capture.column(name).settings.get("sink") == "raw"]
    if unasked and (pattern is None or raw != unasked):
        raise InputError(
            f"{', '.join(unasked)} was begun together with {', '.join(sorted(made & set(capture.names)))} in "
            f"{store.path}: ask for all of them again, so that one pass can finish them"
        )
    return [RawSink(sites=(name,), dtype=pattern.dtype, reduce=pattern.reduce) for name in raw if pattern is not None]


def _check_units(store: Store, job: Job, units: Sequence[Unit]) -> None:
    if units:
        config = load_config(job.model).get_text_config(decoder=True)
        check_prompts(
            load_tokenizer(job.model),
            [store.unit_prompts(unit) for unit in units],
            context=context_of(config),
            truncate=job.truncate,
            tokens=job.tokens,
            vocabulary=config.vocab_size,
        )


def _token_selection(spec: CaptureSpec | None, tokens: str | None) -> str:
    if spec is None:
        check_tokens(tokens or "all")
        return tokens or "all"
    if tokens not in (None, spec.tokens):
        raise InputError(f"tokens={tokens} and a spec with tokens={spec.tokens}: one pass has one token selection")
    return spec.tokens


def _raw_sinks(model: ModelRef, spec: CaptureSpec | None) -> list[Sink]:
    """One raw sink per site, so that a site missing in one unit costs no other site there."""
    if spec is None:
        return []
    sites = skeleton(model).sites(spec.sites)
    return [RawSink(sites=(str(site),), dtype=spec.dtype or model.dtype, reduce=spec.reduce) for site in sites]
