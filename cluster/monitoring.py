"""Monitors over prompts: a harvest with a scoring sink, whose columns are read back and thrown away.

What `thresher monitor` does, for programs.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.monitors import (
    ExtremesSink,
    Monitor,
    MonitorSink,
    calibrate,
    common_prefix,
    load_monitor,
    watched,
)
from analysis.monitors.calibrate import check_request
from analysis.monitors.monitor import described
from analysis.sinks import ProjectionSink
from analysis.statistics.bootstrap import bootstrap_mean
from analysis.weights import load_delta
from harvest import EncodedPrompt, Progress, encode, harvest, load_tokenizer
from harvest.loading import context_of, load_config
from store import IncompleteError, InputError, ModelRef, Pool, PromptSet, Sink, Store

Watch = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """How prompts are run: where, what is told of it, and whether long prompts are cut."""

    pool: Pool | None = None
    progress: Watch | None = None
    truncate: bool = False

    def columns(self, model: ModelRef, prompts: PromptSet, sink: Sink, *, max_quarantined: int = 0) -> list[np.ndarray]:
        """The sink's columns, each as one array in the order of the prompts.

        Raises IncompleteError where more prompts than `max_quarantined` could not be run; a sink leaves NaN there.
        """
        with tempfile.TemporaryDirectory(prefix="thresher-") as folder:
            store = Store.create(str(Path(folder) / "scores"), prompts)
            harvest(
                model,
                store,
                None,
                sinks=[sink],
                pool=self.pool,
                truncate=self.truncate,
                max_quarantined=max_quarantined,
                certificate_prompts=0,
                progress=self.progress,
            ).raise_if_incomplete()
            return [np.asarray(store.column(model, name)[:]) for name in sink.columns]


def fit_monitor(
    delta: str,
    model: ModelRef,
    prompts: PromptSet,
    *,
    fpr: float = 0.01,
    rule: str = "z",
    scoring: str = "cosine",
    noise: bool = False,
    run: Pass | None = None,
) -> Monitor:
    """A monitor of the directions in `delta` (a folder of `thresher weights`), calibrated on clean prompts.

    Raises InputError where there are too few prompts for `fpr`, no directions to watch, or `model` is not the tuned
    model of the difference.
    """
    model, run = model.resolve(), run or Pass()
    record, found = load_delta(delta)
    directions = watched(found, rule=rule, noise=noise)
    _check_tuned(delta, record, model)
    groups = prompt_groups(prompts)
    check_request(groups, fpr=fpr, rule=rule, scoring=scoring)
    encoded = _encoded(model, prompts, truncate=run.truncate)
    prefix = common_prefix([prompt.ids for prompt in encoded])
    sink = ExtremesSink(directions=tuple(directions), scoring=scoring, prefix=prefix)
    extremes, _ = run.columns(model, prompts, sink)
    monitor = calibrate(directions, extremes, groups, fpr=fpr, rule=rule, scoring=scoring, prefix=prefix)
    return replace(
        monitor,
        model={"name": model.name, "adapter": model.adapter, "digest": model.digest, "dtype": model.dtype},
        delta={"digest": record["digest"], "base": record["base"]["digest"], "tuned": record["tuned"]["digest"]},
    )


def _check_tuned(delta: str, record: dict[str, Any], model: ModelRef) -> None:
    """Raises InputError where the model is another than the tuned one of the difference."""
    tuned = record["tuned"]
    if model.digest != tuned["digest"]:
        wanted = ModelRef(tuned["name"], adapter=tuned["adapter"])
        raise InputError(
            f"{delta} is what was tuned into {described(wanted, tuned['digest'])}, this is "
            f"{described(model, model.digest)}: a monitor watches the tuned model, give that one"
        )


def score_prompts(monitor: Monitor, model: ModelRef, prompts: PromptSet, *, run: Pass | None = None) -> dict[str, Any]:
    """The JSON of `thresher monitor score`: what is flagged, by which direction, at which token, and the rate.

    Prompts that could not be run or whose scores are not finite are listed with `flagged` and `score` None, counted
    in `unscored` and left out of `n` and of the rate. Raises InputError for another model than the monitor's, and
    IncompleteError where no prompt has a score.
    """
    model = model.resolve()
    monitor.check(model)
    sink = MonitorSink(monitor=monitor)
    scores, fired = (run or Pass()).columns(model, prompts, sink, max_quarantined=len(prompts))
    scored = np.isfinite(scores[:, 0])
    _check_some(scored)
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": prompt_id,
            "flagged": bool(score > monitor.threshold),
            "score": float(score),
            "direction": monitor.directions[place[0]].name,
            "site": monitor.directions[place[0]].site,
            "side": "low" if place[1] else "high",
            "position": int(place[2]),
            "raw": float(raw),
        }
        if np.isfinite(score)
        else {"prompt_id": prompt_id, "flagged": None, "score": None}
        for prompt_id, (score, raw), place in zip(prompts.prompt_ids, scores.astype(np.float64), fired, strict=True)
    ]
    flags = np.array([row["flagged"] for row in rows if row["flagged"] is not None])
    noun = "groups" if "group" in prompts.table.column_names else "prompts"
    return {
        "flagged": int(flags.sum()),
        "n": len(flags),
        "unscored": len(rows) - len(flags),
        "rate": bootstrap_mean(flags, prompt_groups(prompts)[scored], noun=noun).record(),
        "threshold": monitor.threshold,
        "monitor": monitor.id,
        "prompts": rows,
    }


def audit_prompts(
    monitor: Monitor,
    model: ModelRef,
    prompts: PromptSet,
    *,
    top: int = 5,
    directions: int = 8,
    run: Pass | None = None,
) -> dict[str, Any]:
    """The JSON of `thresher monitor audit`: for the directions that fire most, their top and bottom prompts by token.

    `directions` that reach the largest standardised score anywhere in the corpus are shown, each with its `top`
    highest and lowest prompts; every token comes with its string and raw score (None where that is not finite), so
    that a report can colour it. Prompts without a finite score are counted in `unscored` and shown nowhere. Raises
    InputError for another model than the monitor's, and IncompleteError where no prompt has a score.
    """
    model, run = model.resolve(), run or Pass()
    monitor.check(model)
    sink = ExtremesSink(directions=monitor.directions, scoring=monitor.scoring, prefix=monitor.prefix)
    extremes, positions = run.columns(model, prompts, sink, max_quarantined=len(prompts))
    scored = np.isfinite(extremes).all(axis=(1, 2))
    _check_some(scored)
    standard = np.where(scored[:, None, None], monitor.standardise(extremes), -np.inf)  # an unscored prompt is last
    loudest = np.argsort(-standard.max(axis=(0, 2)), kind="stable")[:directions]
    shown = {
        int(place): [np.argsort(-standard[:, place, side], kind="stable")[: min(top, scored.sum())] for side in (0, 1)]
        for place in loudest
    }
    chosen = sorted({int(row) for sides in shown.values() for rows in sides for row in rows})
    subset = PromptSet.from_table(prompts.table.take(chosen))
    audited = tuple(monitor.directions[place] for place in shown)
    (tokens,) = run.columns(model, subset, ProjectionSink(directions=audited, scoring=monitor.scoring))
    texts = _token_strings(model, subset, truncate=run.truncate)
    starts = np.cumsum([0, *(len(text) for text in texts)])
    if starts[-1] != len(tokens):
        raise IncompleteError(f"{len(tokens)} of the {starts[-1]} tokens to show have a score: rerun the audit")

    def example(row: int, place: int, column: int, side: int) -> dict[str, Any]:
        here = chosen.index(row)
        return {
            "prompt_id": prompts.table["prompt_id"][row].as_py(),
            "score": float(extremes[row, place, side] * (1 - 2 * side)),
            "standardised": float(standard[row, place, side]),
            "position": int(positions[row, place, side]),
            "tokens": texts[here],
            "scores": [
                float(value) if np.isfinite(value) else None
                for value in tokens[starts[here] : starts[here + 1], column]
            ],
        }

    found = []
    for column, (place, sides) in enumerate(shown.items()):
        direction = monitor.directions[place]
        highest, lowest = ([example(int(r), place, column, side) for r in rows] for side, rows in enumerate(sides))
        found.append(
            {
                "direction": direction.name,
                "site": direction.site,
                "source": dict(direction.source),
                "top": highest,
                "bottom": lowest,
            }
        )
    return {
        "monitor": monitor.id,
        "threshold": monitor.threshold,
        "n": int(scored.sum()),
        "unscored": int((~scored).sum()),
        "directions": found,
    }


def _check_some(scored: np.ndarray) -> None:
    if not scored.any():
        raise IncompleteError(
            f"none of the {len(scored)} prompts has a finite score: try --dtype float32, in the monitor's fit as well"
        )


def _token_strings(model: ModelRef, prompts: PromptSet, *, truncate: bool) -> list[list[str]]:
    """The tokens of each prompt as text, byte pairs that are no character by themselves shown as such."""
    tokenizer = load_tokenizer(model)
    encoded = _encoded(model, prompts, truncate=truncate)
    return [[tokenizer.decode([int(token)]) for token in prompt.ids] for prompt in encoded]


def _encoded(model: ModelRef, prompts: PromptSet, *, truncate: bool) -> list[EncodedPrompt]:
    """The prompts as a harvest encodes them, cut to the context where it cuts them."""
    context = context_of(load_config(model).get_text_config(decoder=True))
    return encode(load_tokenizer(model), prompts.table, context=context, truncate=truncate)


def prompt_groups(prompts: PromptSet) -> np.ndarray:
    """String [n]: the group of each prompt, or its id where it has none."""
    table = prompts.table
    ids = [str(value) for value in table["prompt_id"].to_pylist()]
    if "group" not in table.column_names:
        return np.array(ids)
    groups: Sequence[Any] = table["group"].to_pylist()
    named = zip(ids, groups, strict=True)
    return np.array([f"prompt {own}" if group is None else f"group {group}" for own, group in named])


__all__ = ["Pass", "audit_prompts", "fit_monitor", "load_monitor", "prompt_groups", "score_prompts"]
