"""The correctness certificate: sampled prompts run again alone, in float32, against what the store holds.

The error of a row is ‖stored − reference‖ / ‖reference‖. The reference is the same model in float32 without
batches or padding, so the error holds what the compute dtype, the batch, the assembly and the storage did to the
row. The bounds below are stated, not fitted to a run: half precision loses digits with every block, and more where
massive activations dominate a row.

Where two experts are nearly level, half precision may choose the other one, and that token's row, and what attends to
it, is then off by its own size although nothing went wrong. In a mixture of experts a tenth of the rows may therefore
lie beyond the largest error in half precision; the median has to hold as elsewhere, so a wrong row, layer or token is
found all the same. In float32 no row may.

A model that does not fit into memory in float32 is streamed from its files (`harvest.streamed`).
"""

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from harvest.architecture import Decoder
from harvest.encoding import encode
from harvest.gguf import cache_folder
from harvest.loading import LoadedModel, default_device, load_model, load_tokenizer, weight_shards
from harvest.raw_sink import RawSink
from harvest.reader import Reader
from harvest.streamed import fits_whole, float32_bytes, free_memory
from harvest.unit_run import UnitColumns, UnitRun, is_out_of_memory
from harvest.worker import Job
from store import Capture, Site, Store, Unit
from store.cell import read_tokens
from store.errors import InputError

# Largest and median relative error that a row may have, by the coarser of compute and stored dtype.
BOUNDS = {"float32": (1e-3, 1e-4), "float16": (0.1, 0.02), "bfloat16": (0.5, 0.1)}
_COARSENESS = ("float32", "float16", "bfloat16")
# Of a mixture of experts in half precision: one row in so many, and at least one, may be beyond the largest error.
FLIPPED = 10


@dataclass(frozen=True, kw_only=True)
class SiteError:
    """Relative error over the sampled rows of one site, and the bounds it has to keep.

    beyond     rows with more than `bound_largest`, and how many of them are allowed
    exceeding  where a bound is not kept: ids of the prompts with rows beyond it, or whose own median is
    """

    rows: int
    largest: float
    median: float
    bound_largest: float
    bound_median: float
    beyond: int = 0
    bound_beyond: int = 0
    exceeding: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        # NaN is not within any bound.
        finite = bool(np.isfinite(self.largest))
        return finite and self.beyond <= self.bound_beyond and self.median <= self.bound_median


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Errors by site, and the prompts they were measured on.

    streamed  the reference was read from its files block by block, being too large for memory
    left_out  why nothing was measured: such a certificate holds for nothing and is not ok
    """

    prompts: tuple[str, ...]
    sites: dict[str, SiteError]
    streamed: bool = False
    left_out: str | None = None

    @property
    def ok(self) -> bool:
        return self.left_out is None and all(site.ok for site in self.sites.values())

    def record(self) -> dict[str, Any]:
        """JSON; an error that is not finite is null."""
        return {
            "ok": self.ok,
            "prompts": list(self.prompts),
            "sites": {
                name: {**_finite(asdict(site)), "exceeding": list(site.exceeding), "ok": site.ok}
                for name, site in self.sites.items()
            },
            "streamed": self.streamed,
            "left_out": self.left_out,
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Certificate":
        sites: dict[str, SiteError] = {}
        for name, site in record["sites"].items():
            values: dict[str, Any] = {key: np.nan if value is None else value for key, value in site.items()}
            del values["ok"]
            sites[name] = SiteError(**{**values, "exceeding": tuple(values.get("exceeding", ()))})
        return Certificate(
            prompts=tuple(record["prompts"]),
            sites=sites,
            streamed=record.get("streamed", False),
            left_out=record.get("left_out"),
        )


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in values.items()
    }


def certify(
    store: Store, job: Job, captures: Sequence[Capture], n_prompts: int, *, seed: int | None = None
) -> Certificate | None:
    """Re-runs `n_prompts` of the published prompts; None where no raw column is published.

    The sample is of prompts with rows in the store. Its units are spread evenly over the published ones and its prompts
    drawn by the units' digests, so that it is the same for the same store; with a `seed` both are drawn by that. What
    keeps the reference from running is told in `left_out`: the harvest stays what it is.
    """
    asked = [name for capture in captures for name in capture.names]
    raw = [sink for sink in job.sinks if isinstance(sink, RawSink) and sink.sites[0] in asked]
    units = [
        unit
        for unit in store.units
        if all(store.receipt(job.model.id, unit, capture.id) is not None for capture in captures)
    ]
    if not raw or not units:
        return None
    samples = _samples(store, job, captures[0], units, n_prompts, seed)
    if not samples:
        return Certificate(prompts=(), sites={}, left_out="none of the sampled units has a row in the store")
    try:
        return _measured(store, job, raw, samples)
    except InputError as error:
        return Certificate(prompts=(), sites={}, left_out=str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Certificate(prompts=(), sites={}, left_out=f"{job.model.name!r} does not fit into memory in float32")


def _measured(store: Store, job: Job, raw: Sequence[RawSink], samples: Sequence[tuple[Unit, list[int]]]) -> Certificate:
    tokenizer = load_tokenizer(job.model)
    sites = tuple(sink.sites[0] for sink in raw)
    names: list[str] = []
    errors: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    with _reference(job) as (loaded, streamed):
        routed = _has_experts(loaded.decoder)
        reader = Reader(loaded, sites)
        reader.cut()
        for unit, rows in samples:
            table = store.unit_prompts(unit).take(rows)
            prompts = encode(tokenizer, table, context=loaded.context, truncate=job.truncate)
            names += [prompt.prompt_id for prompt in prompts]
            sinks = [replace(copy.deepcopy(sink), dtype="float32") for sink in raw]
            done = UnitRun(reader, prompts, sinks, tokens=job.tokens, budget=1).run(unit, table)
            for entry in done.notes["quarantined"]:
                raise InputError(f"prompt {entry['prompt_id']!r} cannot be run in float32: {entry['reason']}")
            for sink in raw:
                errors[sink.sites[0]] += _errors_by_prompt(store, job, unit, sink, rows, done)
    measured = {}
    for sink in raw:
        coarser = max(job.model.dtype, sink.dtype, key=_COARSENESS.index)
        measured[sink.sites[0]] = _site_error(names, errors[sink.sites[0]], coarser, routed=routed)
    return Certificate(prompts=tuple(names), sites=measured, streamed=streamed)


def _has_experts(decoder: Decoder) -> bool:
    """True where a block has a router."""
    for layer in range(decoder.n_layers):
        with suppress(InputError):
            decoder.tap(Site.parse(f"router.{layer}"))
            return True
    return False


@contextmanager
def _reference(job: Job) -> Iterator[tuple[LoadedModel, bool]]:
    """The job's model in float32, and whether it had to be streamed."""
    model, settings = replace(job.model, dtype="float32"), job.settings
    if job.device == "auto" or fits_whole(float32_bytes(weight_shards(model)), free_memory(default_device())):
        loaded = load_model(
            model,
            device=job.device,
            attention=settings.attention,
            threads=settings.threads,
            quantization=settings.quantization,
        )
        yield loaded, False
        return
    if settings.quantization != "none":
        raise InputError("the model does not fit into memory in float32, and quantized weights are not streamed")
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        spill = tempfile.TemporaryDirectory(prefix="streamed-", dir=cache)
    except OSError as error:
        raise InputError(f"{cache} cannot be written, and a streamed model may need it: {error.strerror}") from error
    with spill as folder:
        loaded = load_model(model, attention=settings.attention, threads=settings.threads, streamed_through=folder)
        yield loaded, True
        # Its weights were read until now.
        loaded.ref.check_unchanged()


def relative_errors(stored: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """‖stored − reference‖ / ‖reference‖ of every row [rows, width…], in float64."""
    width = math.prod(reference.shape[1:])  # not -1: there may be no rows
    exact = reference.reshape(len(reference), width).astype(np.float64)
    given = stored.reshape(len(stored), width).astype(np.float64)
    size = np.linalg.norm(exact, axis=1)
    with np.errstate(invalid="ignore"):  # a value that is not finite gives NaN, which is within no bound
        return np.linalg.norm(given - exact, axis=1) / np.where(size > 0, size, 1.0)


def _samples(
    store: Store, job: Job, capture: Capture, units: Sequence[Unit], n: int, seed: int | None
) -> list[tuple[Unit, list[int]]]:
    """Units, each with the rows to run again, of prompts that have rows in the store."""
    if seed is None:
        chosen = sorted({int(place) for place in np.linspace(0, len(units) - 1, min(n, len(units)))})
    else:
        chosen = _drawn(len(units), n, np.random.default_rng(seed))
    samples = []
    for turn, place in enumerate(chosen):
        unit = units[place]
        receipt = store.receipt(job.model.id, unit, capture.id)
        assert receipt is not None
        present = np.unique(_selected(read_tokens(store.location, receipt)))
        share = n // len(chosen) + (turn < n % len(chosen))
        random = np.random.default_rng([int(unit.digest[:8], 16), *([] if seed is None else [seed])])
        rows = present[_drawn(len(present), share, random)].tolist()
        if rows:
            samples.append((unit, rows))
    return samples


def _drawn(count: int, n: int, random: np.random.Generator) -> list[int]:
    """At most `n` of `count` places, in order."""
    return sorted(random.choice(count, min(n, count), replace=False).tolist())


def _errors_by_prompt(
    store: Store, job: Job, unit: Unit, sink: RawSink, rows: Sequence[int], reference: UnitColumns
) -> list[np.ndarray]:
    """Errors of the rows of each sampled prompt; NaN for a prompt that has another number of rows in the store."""
    name = sink.sites[0]
    column = store.column(job.model, name, partial=True)
    place = next(number for number, receipt in enumerate(column.receipts) if receipt.unit == unit.name)
    start = sum(receipt.columns[name].shape[0] for receipt in column.receipts[:place])
    values = reference.columns[name].values
    if column.rows == "prompt":
        pairs = [(np.array([row]), np.array([turn])) for turn, row in enumerate(rows)]
    else:
        there = _selected(read_tokens(store.location, column.receipts[place]))
        here = _selected(reference.tokens)
        pairs = [(np.flatnonzero(there == row), np.flatnonzero(here == turn)) for turn, row in enumerate(rows)]
    return [
        relative_errors(column[start + stored], values[exact]) if len(stored) == len(exact) else np.array([np.nan])
        for stored, exact in pairs
    ]


def _selected(tokens: pa.Table) -> np.ndarray:
    """The prompt (row of the unit) of every selected token."""
    prompts: np.ndarray = tokens.filter(tokens.column("selected")).column("prompt").to_numpy()
    return prompts


def _site_error(names: Sequence[str], parts: Sequence[np.ndarray], dtype: str, *, routed: bool) -> SiteError:
    """`parts` holds the errors of each prompt's rows."""
    largest, median = BOUNDS[dtype]
    errors = np.concatenate(parts)
    site = SiteError(
        rows=len(errors),
        largest=float(errors.max()) if len(errors) else 0.0,
        median=float(np.median(errors)) if len(errors) else 0.0,
        bound_largest=largest,
        bound_median=median,
        beyond=int((~(errors <= largest)).sum()),
        bound_beyond=max(1, len(errors) // FLIPPED) if routed and dtype != "float32" else 0,
    )
    if site.ok:
        return site
    beyond = (len(rows) and not ((rows <= largest).all() and np.median(rows) <= median) for rows in parts)
    return replace(site, exceeding=tuple(name for name, is_beyond in zip(names, beyond, strict=True) if is_beyond))
