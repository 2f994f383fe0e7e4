"""Dose-response of directions: what a model answers with them written to, beside random directions of the same norms.

What `thresher steer` does, for programs. That a direction detects something does not show that writing to it steers,
nor that removing it silences: each is measured here by what changes, and random directions tell how much would change
anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.monitors import Monitor
from analysis.statistics import bootstrap_mean
from analysis.statistics.mean import mean_interval
from cluster.monitoring import groups_noun, prompt_groups
from harvest import Intervention, NumericSettings, Sampling, encode, load_model, load_tokenizer
from harvest.condition import Condition
from harvest.generation import Answer, answer, ask
from harvest.likelihood import mean_logprobs, mean_norms
from harvest.widths import site_widths
from store import Direction, InputError, ModelRef, PromptSet

EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Dose:
    """kind: `add`, `ablate` or `clamp`; amount: of add and clamp, in mean norms of the site's activations."""

    kind: str
    amount: float | None = None

    def interventions(self, directions: Sequence[Direction], norms: dict[str, float]) -> list[Intervention]:
        """One a direction, or for ablate one a site, whose directions are projected out together."""
        if self.kind == "ablate":
            sites = dict.fromkeys(direction.site for direction in directions)
            return [
                Intervention(
                    site=site, kind="ablate", vectors=np.stack([_unit(d) for d in directions if d.site == site])
                )
                for site in sites
            ]
        amount = self.amount or 0.0
        return [
            Intervention(site=d.site, kind=self.kind, vectors=_unit(d), amount=amount * norms[d.site])
            for d in directions
        ]


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What is done to which directions.

    directions  all written to at once
    doses       each is a run of its own
    monitor     where given, only prompts that it flags are changed, from the token on that fired
    controls    runs with random directions of the same norms at the same sites, beside each dose
    seed        of the random directions; they are the same at every dose
    """

    directions: tuple[Direction, ...]
    doses: tuple[Dose, ...]
    monitor: Monitor | None = None
    controls: int = 3
    seed: int = 0


def condition_of(monitor: Monitor) -> Condition:
    """A monitor's rule as a condition on single tokens: a prompt is flagged exactly where one of its tokens fires.

    Raises InputError for a kind of score that needs more than a token and a direction.
    """
    scorer = monitor.scorer
    if scorer.kind not in ("cosine", "projection"):
        raise InputError(
            f"{monitor.id} scores by {scorer.kind}, and prompts can be changed once they fire by cosine or projection "
            "only: fit a monitor with --scoring cosine"
        )
    return Condition(
        sites=tuple(direction.site for direction in scorer.directions),
        vectors=tuple(direction.vector for direction in scorer.directions),
        scoring=scorer.kind,
        centre=monitor.centre,
        spread=monitor.spread,
        threshold=monitor.threshold,
        roles=scorer.roles,
        prefix=scorer.prefix,
    )


def steer(
    model: ModelRef,
    prompts: PromptSet,
    steering: Steering,
    *,
    clean: PromptSet | None = None,
    max_new_tokens: int = 32,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda prompts: None,
) -> tuple[dict[str, Any], pa.Table]:
    """The JSON of `thresher steer`, and a row for every prompt and run.

    clean     text whose perplexity tells what the changes cost
    progress  called with the number of prompts answered since the last call

    Raises InputError for a direction that the model has no place for, and for another model than the monitor's.
    """
    model = model.resolve()
    if steering.monitor is not None:
        steering.monitor.check(model)
    once = None if steering.monitor is None else condition_of(steering.monitor)
    _check_widths(model, steering.directions)
    settings = NumericSettings()
    loaded = load_model(model, attention=settings.attention, threads=settings.threads)
    tokenizer = load_tokenizer(model)
    _, asked = ask(loaded, tokenizer, prompts.table, truncate=truncate)
    text = [] if clean is None else encode(tokenizer, clean.table, context=loaded.context, truncate=truncate)
    norms = mean_norms(loaded, asked, _sites(steering.directions))
    sampling = Sampling(max_new_tokens=max_new_tokens)

    def run(interventions: Sequence[Intervention]) -> list[Answer]:
        return answer(loaded, tokenizer, asked, sampling, interventions=interventions, once=once, progress=progress)

    reference = run(())
    replies = [said.behind(prompt) for prompt, said in zip(asked, reference, strict=True)]
    answered, whole = [reply.response for reply in replies], [np.ones(len(prompt), bool) for prompt in text]

    def likelihoods(interventions: Sequence[Intervention]) -> tuple[np.ndarray, np.ndarray]:
        options: dict[str, Any] = {"interventions": interventions, "once": once}
        return mean_logprobs(loaded, replies, answered, **options), mean_logprobs(loaded, text, whole, **options)

    study = _Study(prompts=prompts, clean=clean, reference=reference, before=likelihoods(()))
    rows = [study.rows(reference, study.before, kind="none", amount=0.0, control=None)]
    doses = [{"kind": "none", "amount": 0.0, **study.measure(reference, study.before, "no change"), "random": []}]
    for dose in steering.doses:
        measured = []
        for control in [None, *range(steering.controls)]:
            interventions = dose.interventions(steering.directions, norms)
            if control is not None:
                generator = np.random.default_rng([steering.seed, control])
                interventions = [intervention.control(generator) for intervention in interventions]
            answers, after = run(interventions), likelihoods(interventions)
            measured.append(study.measure(answers, after, f"{dose.kind} {dose.amount or ''}"))
            rows.append(study.rows(answers, after, kind=dose.kind, amount=dose.amount, control=control))
        doses.append({"kind": dose.kind, "amount": dose.amount, **measured[0], "random": measured[1:]})
    table = pa.concat_tables(rows)
    responses = [tokenizer.decode(ids, skip_special_tokens=True) for ids in table.column("ids").to_pylist()]
    at = table.schema.get_field_index("ids")
    table = table.set_column(at, "response", pa.array(responses, pa.string()))
    record = {
        "model": model.id,
        "n": len(prompts),
        "directions": [{"name": d.name, "site": d.site, "mean_norm": norms[d.site]} for d in steering.directions],
        "monitor": None if steering.monitor is None else steering.monitor.id,
        "fired": None if once is None else study.share([each.fired for each in reference]),
        "seed": steering.seed,
        "doses": doses,
        "examples": _examples(table),
    }
    return record, table


@dataclass(frozen=True, kw_only=True)
class _Study:
    """Prompts with their unchanged answers: what every run is compared with.

    before  float64 [n] and [m]: mean log-probability of each prompt's unchanged answer, and of each clean text
    """

    prompts: PromptSet
    clean: PromptSet | None
    reference: Sequence[Answer]
    before: tuple[np.ndarray, np.ndarray]

    def changed(self, answers: Sequence[Answer]) -> list[bool]:
        return [new.ids != old.ids for new, old in zip(answers, self.reference, strict=True)]

    def share(self, flags: Sequence[bool]) -> dict[str, object]:
        """With its interval: exact where every prompt is a group of its own."""
        return bootstrap_mean(np.array(flags), prompt_groups(self.prompts), noun=groups_noun(self.prompts)).record()

    def measure(self, answers: Sequence[Answer], after: tuple[np.ndarray, np.ndarray], what: str) -> dict[str, Any]:
        """What one run changed. Raises InputError where the model's probabilities are no longer numbers."""
        for old, new in zip(self.before, after, strict=True):
            if not np.isfinite(new[~np.isnan(old)]).all():
                raise InputError(f"{what}: the model's probabilities are not finite, use smaller amounts or float32")
        perplexity = None
        if self.clean is not None:
            known = ~np.isnan(self.before[1])
            change = _mean(after[1] - self.before[1], self.clean)
            # The ratio falls where the log-probability rises: the ends of its interval change places.
            ratio = {end: _exp_minus(change[of]) for end, of in (("value", "value"), ("low", "high"), ("high", "low"))}
            perplexity = {
                "without": _exp_minus(float(self.before[1][known].mean())) if known.any() else None,
                "with": _exp_minus(float(after[1][known].mean())) if known.any() else None,
                "logprob": change,
                "ratio": ratio,
            }
        return {
            "changed": self.share(self.changed(answers)),
            "answer_logprob": _mean(after[0] - self.before[0], self.prompts),
            "perplexity": perplexity,
        }

    def rows(
        self,
        answers: Sequence[Answer],
        after: tuple[np.ndarray, np.ndarray],
        *,
        kind: str,
        amount: float | None,
        control: int | None,
    ) -> pa.Table:
        n = len(answers)
        change = after[0] - self.before[0]
        return pa.table(
            {
                "prompt_id": pa.array(self.prompts.prompt_ids, pa.string()),
                "kind": pa.array([kind] * n, pa.string()),
                "amount": pa.array([amount] * n, pa.float64()),
                "control": pa.array([control] * n, pa.int32()),
                "ids": pa.array([each.ids for each in answers], pa.list_(pa.int32())),
                "finish": pa.array([each.finish for each in answers], pa.string()),
                "fired": pa.array([each.fired for each in answers], pa.bool_()),
                "changed": pa.array(self.changed(answers), pa.bool_()),
                "answer_logprob": pa.array(change, pa.float64(), mask=np.isnan(change)),
            }
        )


def _examples(table: pa.Table) -> list[dict[str, Any]]:
    """Answers of a few prompts along the doses, those first that a dose changed; random directions are left out."""
    rows = [row for row in table.to_pylist() if row["control"] is None]
    ids = dict.fromkeys(row["prompt_id"] for row in rows)
    changed = {row["prompt_id"] for row in rows if row["changed"]}
    return [
        {
            "prompt_id": own,
            "answers": [
                {name: row[name] for name in ("kind", "amount", "response", "fired")}
                for row in rows
                if row["prompt_id"] == own
            ],
        }
        for own in sorted(ids, key=lambda own: own not in changed)[:EXAMPLES]
    ]


def _sites(directions: Sequence[Direction]) -> list[str]:
    return list(dict.fromkeys(direction.site for direction in directions))


def _check_widths(model: ModelRef, directions: Sequence[Direction]) -> None:
    """Raises InputError, before weights are loaded, for a site that the model lacks or a vector of another width."""
    widths = site_widths(model, _sites(directions))
    for direction in directions:
        if direction.vector.shape != (widths[direction.site],):
            raise InputError(
                f"direction {direction.name!r} has width {direction.vector.size}, activations at {direction.site} "
                f"{widths[direction.site]}: it was made for another model or site"
            )


def _unit(direction: Direction) -> np.ndarray:
    norm = np.linalg.norm(direction.vector)
    if not norm:
        raise InputError(f"direction {direction.name!r} is zero: it points nowhere")
    return np.asarray(direction.vector / norm)


def _mean(change: np.ndarray, prompts: PromptSet) -> dict[str, Any]:
    """Mean over the rows that have one, with an interval where two groups or more do."""
    known = ~np.isnan(change)
    groups = prompt_groups(prompts)[known]
    if len(np.unique(groups)) < 2:
        value = float(change[known].mean()) if known.any() else None
        return {"value": value, "low": None, "high": None, "units": len(groups)}
    return mean_interval(change[known], groups, noun=groups_noun(prompts)).record()


def _exp_minus(value: float | None) -> float | None:
    return None if value is None else float(np.exp(min(-value, 700.0)))
