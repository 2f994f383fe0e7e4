"""Monitors over prompts: a harvest with a scoring sink, whose columns are read back and thrown away.

What `thresher monitor` does, for programs.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.monitors import (
    ExtremesSink,
    Monitor,
    MonitorSink,
    TokenScoreSink,
    calibrate,
    common_prefix,
    load_monitor,
    watched,
)
from analysis.statistics.proportion import clopper_pearson
from analysis.weights import load_delta
from harvest import Progress, encode, harvest, load_tokenizer
from store import ModelRef, Pool, PromptSet, Sink, Store

Watch = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """How prompts are run: where, what is told of it, and whether long prompts are cut."""

    pool: Pool | None = None
    progress: Watch | None = None
    truncate: bool = False

    def columns(self, model: ModelRef, prompts: PromptSet, sink: Sink) -> list[np.ndarray]:
        """The sink's columns, each as one array in the order of the prompts.

        Raises IncompleteError where a prompt could not be run.
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

    Raises InputError where there are too few prompts for `fpr`, or no directions to watch.
    """
    model = model.resolve()
    directions = watched(load_delta(delta)[1], rule=rule, noise=noise)
    encoded = encode(load_tokenizer(model), prompts.table)
    prefix = common_prefix([prompt.ids for prompt in encoded])
    sink = ExtremesSink(directions=tuple(directions), scoring=scoring, prefix=prefix)
    extremes, _ = (run or Pass()).columns(model, prompts, sink)
    return calibrate(directions, extremes, prompt_groups(prompts), fpr=fpr, rule=rule, scoring=scoring, prefix=prefix)


def score_prompts(monitor: Monitor, model: ModelRef, prompts: PromptSet, *, run: Pass | None = None) -> dict[str, Any]:
    """The JSON of `thresher monitor score`: what is flagged, by which direction, at which token, and the rate."""
    scores, fired = (run or Pass()).columns(model.resolve(), prompts, MonitorSink(monitor=monitor))
    rows = [
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
        for prompt_id, (score, raw), place in zip(
            prompts.table["prompt_id"].to_pylist(), scores.astype(np.float64), fired, strict=True
        )
    ]
    flagged = sum(row["flagged"] for row in rows)
    return {
        "flagged": flagged,
        "n": len(rows),
        "rate": rate(flagged, len(rows)),
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
    highest and lowest prompts; every token comes with its string and raw score, so that a report can colour it.
    """
    model, run = model.resolve(), run or Pass()
    sink = ExtremesSink(directions=monitor.directions, scoring=monitor.scoring, prefix=monitor.prefix)
    extremes, positions = run.columns(model, prompts, sink)
    standard = monitor.standardise(extremes)
    loudest = np.argsort(-standard.max(axis=(0, 2)), kind="stable")[:directions]
    shown = {
        int(place): [np.argsort(-extremes[:, place, side], kind="stable")[:top] for side in (0, 1)] for place in loudest
    }
    chosen = sorted({int(row) for sides in shown.values() for rows in sides for row in rows})
    subset = PromptSet.from_table(prompts.table.take(chosen))
    audited = tuple(monitor.directions[place] for place in shown)
    (tokens,) = run.columns(model, subset, TokenScoreSink(directions=audited, scoring=monitor.scoring))
    texts = _token_strings(model, subset)
    starts = np.cumsum([0, *(len(text) for text in texts)])

    def example(row: int, place: int, column: int, side: int) -> dict[str, Any]:
        here = chosen.index(row)
        return {
            "prompt_id": prompts.table["prompt_id"][row].as_py(),
            "score": float(extremes[row, place, side] * (1 - 2 * side)),
            "standardised": float(standard[row, place, side]),
            "position": int(positions[row, place, side]),
            "tokens": texts[here],
            "scores": [float(value) for value in tokens[starts[here] : starts[here + 1], column]],
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
    return {"monitor": monitor.id, "threshold": monitor.threshold, "n": len(prompts), "directions": found}


def _token_strings(model: ModelRef, prompts: PromptSet) -> list[list[str]]:
    """The tokens of each prompt as text, byte pairs that are no character by themselves shown as such."""
    tokenizer = load_tokenizer(model)
    return [[tokenizer.decode([int(token)]) for token in prompt.ids] for prompt in encode(tokenizer, prompts.table)]


def prompt_groups(prompts: PromptSet) -> np.ndarray:
    """String [n]: the group of each prompt, or its id where it has none."""
    table = prompts.table
    ids = [str(value) for value in table["prompt_id"].to_pylist()]
    if "group" not in table.column_names:
        return np.array(ids)
    groups: Sequence[Any] = table["group"].to_pylist()
    named = zip(ids, groups, strict=True)
    return np.array([f"prompt {own}" if group is None else f"group {group}" for own, group in named])


def rate(flagged: int, n: int) -> dict[str, float]:
    """A share with its exact (Clopper–Pearson) 95 % interval."""
    low, high = clopper_pearson(flagged, n)
    return {"value": flagged / n, "low": low, "high": high}


__all__ = ["Pass", "audit_prompts", "fit_monitor", "load_monitor", "prompt_groups", "rate", "score_prompts"]
