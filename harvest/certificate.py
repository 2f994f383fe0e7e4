"""The correctness certificate: sampled prompts run again alone, in float32, against what the store holds.

The error of a row is ‖stored − reference‖ / ‖reference‖. The reference is the same model in float32 without
batches or padding, so the error holds what the compute dtype, the batch, the assembly and the storage did to the
row. The bounds below are stated, not fitted to a run: half precision loses digits with every block, and more where
massive activations dominate a row.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from harvest.encoding import encode
from harvest.loading import load_model, load_tokenizer
from harvest.raw_sink import RawSink
from harvest.reader import Reader
from harvest.unit_run import UnitRun
from harvest.worker import Job
from store import Capture, Store, Unit
from store.cell import read_tokens

# Largest and median relative error that a row may have, by the coarser of compute and stored dtype.
BOUNDS = {"float32": (1e-3, 1e-4), "float16": (0.1, 0.02), "bfloat16": (0.5, 0.1)}
_COARSENESS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class SiteError:
    """Relative error over the sampled rows of one site, and the bounds it has to keep."""

    rows: int
    largest: float
    median: float
    bound_largest: float
    bound_median: float

    @property
    def ok(self) -> bool:
        # NaN is not within any bound.
        return self.largest <= self.bound_largest and self.median <= self.bound_median


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Errors by site, and the prompts they were measured on."""

    prompts: tuple[str, ...]
    sites: dict[str, SiteError]

    @property
    def ok(self) -> bool:
        return all(site.ok for site in self.sites.values())

    def record(self) -> dict[str, Any]:
        """JSON; an error that is not finite is null."""
        return {
            "ok": self.ok,
            "prompts": list(self.prompts),
            "sites": {name: {**_finite(asdict(site)), "ok": site.ok} for name, site in self.sites.items()},
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Certificate":
        sites: dict[str, SiteError] = {}
        for name, site in record["sites"].items():
            values: dict[str, Any] = {key: np.nan if value is None else value for key, value in site.items()}
            del values["ok"]
            sites[name] = SiteError(**values)
        return Certificate(prompts=tuple(record["prompts"]), sites=sites)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def certify(store: Store, job: Job, captures: Sequence[Capture], n_prompts: int) -> Certificate | None:
    """Re-runs `n_prompts` of the published prompts; None where no raw column is published.

    The sample is spread evenly over the published units, so that it is the same for the same store.
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
    model = replace(job.model, dtype="float32")
    tokenizer = load_tokenizer(model)
    loaded = load_model(model, attention=job.settings.attention, threads=job.settings.threads)
    sites = tuple(sink.sites[0] for sink in raw)
    reader = Reader(loaded, sites)
    reader.cut()
    chosen = sorted({int(place) for place in np.linspace(0, len(units) - 1, min(n_prompts, len(units)))})
    names: list[str] = []
    errors: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for turn, place in enumerate(chosen):
        unit = units[place]
        share = n_prompts // len(chosen) + (turn < n_prompts % len(chosen))
        rows = _sample(store, job, captures[0], unit, share)
        if not rows:
            continue
        table = store.unit_prompts(unit).take(rows)
        prompts = encode(tokenizer, table, context=loaded.context, truncate=job.truncate)
        names += [prompt.prompt_id for prompt in prompts]
        sinks = [replace(copy.deepcopy(sink), dtype="float32") for sink in raw]
        reference = UnitRun(reader, prompts, sinks, tokens=job.tokens, budget=1).run(unit, table).columns
        for sink in raw:
            stored = _stored_rows(store, job, unit, sink, rows)
            errors[sink.sites[0]].append(relative_errors(stored, reference[sink.sites[0]].values))
    if not names:
        return None
    measured = {sink.sites[0]: _site_error(errors[sink.sites[0]], job.model.dtype, sink.dtype) for sink in raw}
    return Certificate(prompts=tuple(names), sites=measured)


def relative_errors(stored: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """‖stored − reference‖ / ‖reference‖ of every row [rows, width…], in float64."""
    exact = reference.reshape(len(reference), -1).astype(np.float64)
    given = stored.reshape(len(stored), -1).astype(np.float64)
    size = np.linalg.norm(exact, axis=1)
    with np.errstate(invalid="ignore"):  # a value that is not finite gives NaN, which is within no bound
        return np.linalg.norm(given - exact, axis=1) / np.where(size > 0, size, 1.0)


def _sample(store: Store, job: Job, capture: Capture, unit: Unit, n: int) -> list[int]:
    """Rows of a unit, evenly spread over those not quarantined."""
    receipt = store.receipt(job.model.id, unit, capture.id)
    absent = {entry["prompt_id"] for entry in receipt.notes["quarantined"]} if receipt else set()
    ids = store.unit_prompts(unit).column("prompt_id").to_pylist()
    present = [row for row, prompt_id in enumerate(ids) if prompt_id not in absent]
    places = np.linspace(0, len(present) - 1, min(n, len(present))).astype(int)
    return [present[place] for place in sorted(set(places.tolist()))]


def _stored_rows(store: Store, job: Job, unit: Unit, sink: RawSink, rows: Sequence[int]) -> np.ndarray:
    """What the store holds of some prompts of a unit, in the order of `rows`."""
    name = sink.sites[0]
    column = store.column(job.model, name, partial=True)
    place = next(number for number, receipt in enumerate(column.receipts) if receipt.unit == unit.name)
    start = sum(receipt.columns[name].shape[0] for receipt in column.receipts[:place])
    if column.rows == "prompt":
        return column[start + np.asarray(rows)]
    tokens = read_tokens(store.location, column.receipts[place])
    prompt = tokens.filter(tokens.column("selected")).column("prompt").to_numpy()
    return column[start + np.concatenate([np.flatnonzero(prompt == row) for row in rows])]


def _site_error(parts: Sequence[np.ndarray], compute: str, stored: str) -> SiteError:
    errors = np.concatenate(parts)
    largest, median = BOUNDS[max(compute, stored, key=_COARSENESS.index)]
    return SiteError(
        rows=len(errors),
        largest=float(errors.max()) if len(errors) else 0.0,
        median=float(np.median(errors)) if len(errors) else 0.0,
        bound_largest=largest,
        bound_median=median,
    )
