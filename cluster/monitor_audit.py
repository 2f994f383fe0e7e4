"""What makes a monitor's directions fire: the prompts and tokens of a corpus at both ends of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.monitors import ExtremesSink, Monitor
from analysis.monitors.variance import VarianceSink
from analysis.sinks import ProjectionSink
from cluster.labelling import Labeller, labelled
from cluster.monitoring import Pass, check_some, encoded_prompts, token_strings
from harvest import load_model, load_tokenizer
from harvest.loading import load_config
from harvest.read_out import read_out
from store import Direction, IncompleteError, ModelRef, PromptSet


def audit_prompts(
    monitor: Monitor,
    model: ModelRef,
    prompts: PromptSet,
    *,
    top: int = 5,
    directions: int = 8,
    labeller: Labeller | None = None,
    run: Pass | None = None,
) -> dict[str, Any]:
    """The JSON of `thresher monitor audit`: for the directions that fire most, their top and bottom prompts by token.

    `directions` that reach the largest standardised score anywhere in the corpus are shown, each with its `top`
    highest and lowest prompts; every token comes with its string and raw score (None where that is not finite), so
    that a report can colour it. `read_out` says which tokens the direction itself makes more and less likely (see
    `harvest.read_out`); None for a subspace, and for a direction that is not as wide as the residual stream. `variance`
    is the share of the corpus' variance at its site that lies along it (see `analysis.monitors.variance`); None where
    nothing varies. `labeller` is given each of these records, and what it says becomes `label`, one line of at most 80
    characters; where it fails, `label` is None and `label_note` says why.

    Prompts without a finite score are counted in `unscored`, those without tokens of the monitor's roles in
    `without_roles`; neither are in `n`, in `variance` or shown. Raises InputError for another model than the monitor's,
    and IncompleteError where no prompt has a score.
    """
    model, run = model.resolve(), run or Pass()
    monitor.check(model)
    variance = VarianceSink(scorer=monitor.scorer)
    extremes, positions, *moments = run.columns(
        model, prompts, ExtremesSink(scorer=monitor.scorer), variance, max_quarantined=len(prompts)
    )
    score = monitor.score(extremes).score
    unscored, without_roles = np.isnan(score), np.isneginf(score)
    check_some(monitor, unscored, without_roles)
    scored = ~(unscored | without_roles)
    standard = np.where(scored[:, None, None], monitor.standardise(extremes), -np.inf)  # an unscored prompt is last
    # Of each prompt and side, the role that is furthest out.
    slots = np.stack([side + 2 * standard[:, :, side::2].argmax(axis=2) for side in (0, 1)], axis=2)
    standard, extremes, positions = (
        np.take_along_axis(part, slots, axis=2) for part in (standard, extremes, positions)
    )
    loudest = np.argsort(-standard.max(axis=(0, 2)), kind="stable")[:directions]

    def best(place: int, side: int) -> np.ndarray:
        order = np.argsort(-standard[:, place, side], kind="stable")[:top]
        return order[np.isfinite(standard[order, place, side])]

    shown = {int(place): [best(int(place), side) for side in (0, 1)] for place in loudest}
    chosen = sorted({int(row) for sides in shown.values() for rows in sides for row in rows})
    subset = PromptSet.from_table(prompts.table.take(chosen))
    audited = monitor.scorer.only(list(shown))
    (tokens,) = run.columns(
        model,
        subset,
        ProjectionSink(directions=audited.directions, scoring=audited.kind, reference=audited.reference),
    )
    texts = token_strings(model, encoded_prompts(model, subset, truncate=run.truncate))
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

    words = _read_outs(model, audited.directions) if audited.kind != "mahalanobis" else {}
    shares = variance.shares(moments)
    found = []
    sources = {direction.name: dict(direction.source) for direction in monitor.scorer.directions}
    for column, (place, sides) in enumerate(shown.items()):
        name, site = monitor.scorer.channels[place]
        highest, lowest = ([example(int(r), place, column, side) for r in rows] for side, rows in enumerate(sides))
        share = shares[place]
        direction = {
            "direction": name,
            "site": site,
            "source": sources.get(name, {}),
            "read_out": words.get(name),
            "variance": None if share is None else share.record(),
            "top": highest,
            "bottom": lowest,
        }
        label = {"label": None, "label_note": None} if labeller is None else labelled(labeller, direction)
        found.append({**direction, **label})
    return {
        "monitor": monitor.id,
        "threshold": monitor.threshold,
        "n": int(scored.sum()),
        "unscored": int(unscored.sum()),
        "without_roles": int(without_roles.sum()),
        "directions": found,
    }


def _read_outs(model: ModelRef, directions: Sequence[Direction]) -> dict[str, dict[str, Any]]:
    """By name, the tokens of the directions that are as wide as the residual stream."""
    width = load_config(model).get_text_config(decoder=True).hidden_size
    fitting = [direction for direction in directions if direction.vector.shape == (width,)]
    if not fitting:
        return {}
    read = read_out(load_model(model), load_tokenizer(model), np.stack([direction.vector for direction in fitting]))
    return {direction.name: found.record() for direction, found in zip(fitting, read, strict=True)}
