"""On-policy responses of a whole prompt set, over a pool: tasks are its units, and text travels back."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from harvest.generation import Sampling, generate
from harvest.interventions import Intervention
from harvest.loading import load_model, load_tokenizer
from harvest.settings import NumericSettings
from store import ModelRef, Pool, PromptSet, SerialPool, Unit
from store.errors import IncompleteError, InputError


@dataclass(frozen=True, kw_only=True)
class _Request:
    model: ModelRef
    sampling: Sampling
    settings: NumericSettings
    interventions: tuple[Intervention, ...]
    truncate: bool


class _Worker:
    def __init__(self, request: _Request) -> None:
        self.request = request
        self.loaded = load_model(request.model, attention=request.settings.attention, threads=request.settings.threads)
        self.tokenizer = load_tokenizer(request.model)

    def __call__(self, task: tuple[Unit, pa.Table]) -> tuple[Unit, pa.Table | str]:
        unit, table = task
        try:
            answered = generate(
                self.loaded,
                self.tokenizer,
                table,
                self.request.sampling,
                interventions=self.request.interventions,
                truncate=self.request.truncate,
            )
        except InputError as error:
            return unit, str(error)
        return unit, answered


def respond(
    model: ModelRef,
    prompts: PromptSet,
    sampling: Sampling,
    *,
    units: Sequence[Unit] | None = None,
    pool: Pool | None = None,
    settings: NumericSettings | None = None,
    interventions: Sequence[Intervention] = (),
    truncate: bool = False,
) -> Iterator[tuple[Unit, pa.Table]]:
    """Units of the prompts with their responses and where these come from, as they are finished; see `generate`.

    units  of `prompts.units`, all by default. Raises IncompleteError, at the end, where a unit was not answered
    """
    request = _Request(
        model=model.resolve(),
        sampling=sampling,
        settings=settings or NumericSettings(),
        interventions=tuple(interventions),
        truncate=truncate,
    )
    asked = prompts.units if units is None else units
    tasks = [(unit, prompts.table.slice(unit.start, len(unit))) for unit in asked]
    failed: list[str] = []
    for outcome in (pool or SerialPool()).run(functools.partial(_Worker, request), tasks):
        if outcome.result is None:
            failed.append(str(outcome.error))
            continue
        unit, answered = outcome.result
        if isinstance(answered, str):
            raise InputError(answered)
        yield unit, answered
    if failed:
        raise IncompleteError(f"{len(failed)} of {len(tasks)} units were not answered ({failed[0]}): run it again")
