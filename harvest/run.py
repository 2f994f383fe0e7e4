"""The harvest: which cells are missing, who computes them, and what came of it."""

import time
from collections.abc import Callable, Sequence

from harvest.certificate import Certificate, certify
from harvest.execution import Progress, run_units
from harvest.loading import check_device
from harvest.outcome import HarvestResult, result_of
from harvest.plan import job_of, missing_cells
from harvest.settings import NumericSettings
from harvest.worker import Job
from store import Capture, CaptureSpec, ModelRef, Pool, SerialPool, Sink, Store
from store.digest import digest_json


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
    if pool is None:
        check_device(device)
    job = job_of(model, store, spec, sinks=sinks, tokens=tokens, settings=settings, truncate=truncate, device=device)
    job, captures, missing = missing_cells(store, job)
    model = job.model
    store.want(model, captures)
    started = time.monotonic()
    errors, computed = run_units(store, job, missing, pool or SerialPool(), progress)
    seconds = time.monotonic() - started
    certificate = _certificate(store, job, captures, certificate_prompts) if certificate_prompts else None
    return result_of(
        store,
        model,
        captures,
        max_quarantined=max_quarantined,
        certificate=certificate,
        errors=errors,
        computed=computed,
        seconds=seconds,
    )


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
