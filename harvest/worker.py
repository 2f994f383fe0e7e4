"""What runs on a worker: the model is loaded once, then units come and only small results leave.

Columns go from here to the store, on a thread of their own, while the next unit is in the model. What travels back
says how many tokens were read and what was refused.
"""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from harvest.encoding import EncodedPrompt, encode
from harvest.huge_pages import use_huge_pages
from harvest.loading import load_model, load_tokenizer
from harvest.reader import Reader
from harvest.settings import NumericSettings
from harvest.unit_run import UnitColumns, UnitRun
from harvest.ways import ways_of
from store import Capture, ModelRef, Sink, Store, Unit
from store.errors import InputError

# Other versions of these may give other last bits: every receipt names them.
SOFTWARE = ("torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know; cheap to send.

    device  where the model goes: None for the first CUDA device if there is one, `auto` for all of them together
    """

    model: ModelRef
    store_path: str
    sinks: tuple[Sink, ...]
    tokens: str
    settings: NumericSettings
    truncate: bool
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """Some units, one after the other, each with the captures that it lacks.

    quarantined  unit name -> row of the unit -> reason, of prompts that are known to kill a worker
    """

    units: tuple[tuple[Unit, tuple[Capture, ...]], ...]
    quarantined: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """Some prompts of a unit, run without keeping anything: does the worker live?

    attempts  how often a pool gives it out; one prompt alone is given several chances
    """

    unit: Unit
    captures: tuple[Capture, ...]
    rows: tuple[int, ...]

    @property
    def attempts(self) -> int:
        return 1 if len(self.rows) > 1 else 3


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What travels back: counts, and the message of an input error, which the driver raises."""

    prompts: int = 0
    tokens: int = 0
    refused: str | None = None


class Worker:
    """Made once per worker process; called with one task after the other."""

    def __init__(self, job: Job) -> None:
        use_huge_pages()
        self.job = job
        self.store = Store.open(job.store_path)
        self.tokenizer = load_tokenizer(job.model)
        self.loaded = load_model(
            job.model,
            device=job.device,
            attention=job.settings.attention,
            threads=job.settings.threads,
            quantization=job.settings.quantization,
        )
        ways = ways_of(self.loaded)
        self.share = job.settings.share_prefixes and ways.share
        self.pack = job.settings.pack and ways.pack
        self.made_with = {
            **{name: version(name) for name in SOFTWARE},
            "attention": self.loaded.decoder.config._attn_implementation,
            "device": self.loaded.device.type,
            "packed": self.pack,
            "prefixes": self.share,
        }
        self.reader = reader_for(self.loaded, job.sinks)
        self.reader.cut()

    def __call__(self, task: UnitTask | TrialTask) -> UnitResult:
        """Runs and publishes the task's units; a trial publishes nothing.

        While a unit is in the model the next one is tokenised, and at most one finished one is written.
        """
        if isinstance(task, TrialTask):
            table = self.store.unit_prompts(task.unit).take(list(task.rows))
            self._run(task.unit, task.captures, table, self._encode(table))
            return UnitResult(prompts=len(task.rows))
        prompts = tokens = 0
        writing: Future[None] | None = None
        with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
            reading = reader.submit(self._encoded, task.units[0][0])
            for place, (unit, captures) in enumerate(task.units):
                try:
                    table, encoded = reading.result()
                    if place + 1 < len(task.units):
                        reading = reader.submit(self._encoded, task.units[place + 1][0])
                    done = self._run(unit, captures, table, encoded, task.quarantined.get(unit.name))
                except InputError as error:
                    if writing is not None:
                        writing.result()
                    return UnitResult(refused=str(error))
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._publish, unit, captures, done)
                prompts, tokens = prompts + len(unit), tokens + done.tokens.num_rows
            if writing is not None:
                writing.result()
        return UnitResult(prompts=prompts, tokens=tokens)

    def _encoded(self, unit: Unit) -> tuple[pa.Table, list[EncodedPrompt]]:
        table = self.store.unit_prompts(unit)
        return table, self._encode(table)

    def _encode(self, table: pa.Table) -> list[EncodedPrompt]:
        return encode(self.tokenizer, table, context=self.loaded.context, truncate=self.job.truncate)

    def _run(
        self,
        unit: Unit,
        captures: Sequence[Capture],
        table: pa.Table,
        prompts: Sequence[EncodedPrompt],
        quarantined: Mapping[int, str] | None = None,
    ) -> UnitColumns:
        wanted = {name for capture in captures for name in capture.names}
        sinks = [copy.deepcopy(sink) for sink in self.job.sinks if wanted & sink.columns.keys()]
        reader = self._reader_of(sinks)
        run = UnitRun(
            reader,
            prompts,
            sinks,
            tokens=self.job.tokens,
            budget=self.job.settings.token_budget,
            share_prefixes=self.share,
            pack=self.pack,
            quarantined=quarantined,
        )
        return run.run(unit, table)

    def _publish(self, unit: Unit, captures: Sequence[Capture], done: UnitColumns) -> None:
        for capture in captures:
            columns = {name: done.columns[name].values for name in capture.names}
            notes = {**done.notes, "made_with": self.made_with}
            self.store.publish(self.job.model, unit, capture, columns, done.tokens, notes)

    def _reader_of(self, sinks: Sequence[Sink]) -> Reader:
        """The worker's reader, or a narrower one for a unit that lacks fewer columns than others."""
        if len(sinks) == len(self.job.sinks):
            return self.reader
        return reader_for(self.loaded, sinks)


def reader_for(loaded: Any, sinks: Sequence[Sink]) -> Reader:
    """A reader of all that sinks read. A sink that wants logits says so with an attribute `needs_logits`."""
    return Reader(loaded, sites_of(sinks), logits=any(getattr(sink, "needs_logits", False) for sink in sinks))


def sites_of(sinks: Sequence[Sink]) -> tuple[str, ...]:
    """The sites that sinks read, each once."""
    return tuple(dict.fromkeys(site for sink in sinks for site in sink.sites))


def column_settings(sink: Sink, name: str, *, job: Job) -> dict[str, Any]:
    """All that decides a column's numbers: what its key is the digest of.

    Whether long prompts are cut is no part of it: where they are not, they are refused, and no number differs.
    """
    sites = [name] if name in sink.sites else list(sink.sites)
    return {
        **sink.settings(),
        "sites": sites,
        "tokens": job.tokens,
        "compute_dtype": job.model.dtype,
        "numeric": job.settings.record(),
    }
