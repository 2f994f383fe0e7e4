"""The harvest: which cells are missing, who computes them, and what came of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harvest.certificate import Certificate, certify
from harvest.encoding import check_prompts
from harvest.execution import Progress, run_units
from harvest.loading import check_sites, context_of, count_layers, load_config, load_tokenizer
from harvest.raw_sink import RawSink
from harvest.settings import NumericSettings
from harvest.worker import Job, column_settings, sites_of
from store import Capture, CaptureSpec, ColumnSpec, ModelRef, Pool, SerialPool, Sink, Store, Unit, expand_sites
from store.capture_spec import check_tokens
from store.digest import digest_json
from store.errors import IncompleteError, InputError


@dataclass(frozen=True, kw_only=True)
class HarvestResult:
    """What a harvest came to.

    prompts, tokens      in the store for this model and these columns, those of earlier runs included
    computed_tokens      tokens read in this run, in `seconds`
    quarantined          {prompt_id, reason} of every prompt that failed alone
    certificate          None where nothing raw is stored or no prompt was sampled
    errors               what kept units from being computed
    """

    store: Store
    digest: str
    complete: bool
    prompts: int
    tokens: int
    computed_tokens: int
    seconds: float
    quarantined: tuple[dict[str, str], ...]
    certificate: Certificate | None
    errors: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return self.computed_tokens / self.seconds if self.seconds else 0.0

    def raise_if_incomplete(self) -> "HarvestResult":
        """Itself, or IncompleteError saying what is missing."""
        if self.complete:
            return self
        reason = self.errors[0] if self.errors else f"{len(self.quarantined)} prompts are quarantined"
        if not self.errors and self.quarantined:
            first = self.quarantined[0]
            reason += f", the first is {first['prompt_id']!r}: {first['reason']}"
        raise IncompleteError(f"the harvest into {self.store.path} is not complete ({reason}): a rerun resumes")


def harvest(
    model: ModelRef,
    store: Store,
    spec: CaptureSpec | None,
    *,
    sinks: Sequence[Sink] = (),
    tokens: str | None = None,
    pool: Pool | None = None,
    settings: NumericSettings | None = None,
    device: str | None = None,
    truncate: bool = False,
    max_quarantined: int = 0,
    certificate_prompts: int = 4,
    progress: Callable[[Progress], None] | None = None,
) -> HarvestResult:
    """Computes the missing cells of `model` over the store's prompts, and publishes them.

    spec      raw activations to store, or None; its token selection holds for the sinks too
    sinks     further sinks of the same pass
    tokens    the token selection where there is no spec: all by default
    pool      where; by default this process
    device    where each worker's model goes: by default its first CUDA device, or the processor where there is none;
              `auto` spreads the model over all devices of the worker
    truncate  cut prompts longer than the context at their end, and record it; otherwise they are refused
    max_quarantined      more prompts than that which fail alone make the harvest incomplete
    certificate_prompts  how many prompts are re-run alone in float32; 0 leaves the certificate out

    Raises InputError for sites the model does not have, prompts it cannot take, and columns that are in the store
    with other settings; ThresherError of the pool where nothing can run.
    """
    model = model.resolve()
    settings = settings or NumericSettings()
    job = Job(
        model=model,
        store_path=store.path,
        sinks=(*_raw_sinks(model, spec), *sinks),
        tokens=_token_selection(spec, tokens),
        settings=settings,
        truncate=truncate,
        device=device,
    )
    job, captures, missing = _plan(store, job)
    store.want(model, captures)
    started = time.monotonic()
    errors, computed = run_units(store, job, missing, pool or SerialPool(), progress)
    seconds = time.monotonic() - started
    certificate = _certificate(store, job, captures, certificate_prompts) if certificate_prompts else None
    return _result(store, model, captures, max_quarantined, certificate, errors, computed, seconds)


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
    sites = expand_sites(spec.sites, count_layers(model))
    return [RawSink(sites=(str(site),), dtype=spec.dtype or model.dtype, reduce=spec.reduce) for site in sites]


def _plan(store: Store, job: Job) -> tuple[Job, list[Capture], list[tuple[Unit, tuple[Capture, ...]]]]:
    """The job with all it has to compute, its captures, and the units with the ones they lack.

    What can be refused is refused before writing.
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
        context = None if job.truncate else context_of(load_config(job.model).get_text_config(decoder=True))
        tables = [store.unit_prompts(unit) for unit in units]
        check_prompts(load_tokenizer(job.model), tables, context=context, tokens=job.tokens)


def _certificate(store: Store, job: Job, captures: Sequence[Capture], n_prompts: int) -> Certificate | None:
    """The certificate of what is published: the stored one where nothing has changed, otherwise made and stored."""
    keys = sorted(column.key for capture in captures for column in capture.columns)
    lacking = sorted(unit.name for unit, _ in store.missing(job.model, captures))
    key = digest_json([keys, len(store.units), lacking, n_prompts])[:16]
    known = store.certificate(job.model, key)
    if known is not None and not known.get("left_out"):
        return Certificate.from_record(known)
    certificate = certify(store, job, captures, n_prompts)
    if certificate is not None:
        store.write_certificate(job.model, key, certificate.record())
    return certificate


def _result(
    store: Store,
    model: ModelRef,
    captures: Sequence[Capture],
    max_quarantined: int,
    certificate: Certificate | None,
    errors: Sequence[str],
    computed: int,
    seconds: float,
) -> HarvestResult:
    quarantined: dict[str, str] = {}
    prompts = tokens = 0
    for unit in store.units:
        receipts = [store.receipt(model.id, unit, capture.id) for capture in captures]
        published = [receipt for receipt in receipts if receipt is not None]
        if len(published) == len(captures):
            prompts, tokens = prompts + len(unit), tokens + published[0].tokens
        for receipt in published:
            quarantined |= {entry["prompt_id"]: entry["reason"] for entry in receipt.notes["quarantined"]}
    unpublished = bool(store.missing(model, captures))
    return HarvestResult(
        store=store,
        digest=store.digest,
        complete=not unpublished and len(quarantined) <= max_quarantined,
        prompts=prompts,
        tokens=tokens,
        computed_tokens=computed,
        seconds=seconds,
        quarantined=tuple({"prompt_id": key, "reason": reason} for key, reason in sorted(quarantined.items())),
        certificate=certificate,
        errors=tuple(errors) if unpublished else (),
    )
