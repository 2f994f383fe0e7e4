"""The first thing a reader sees: what was found, in plain words, with figures and intervals; failures as plainly."""

from dataclasses import dataclass
from typing import Any

from cluster.report.chart_matrix import verdict
from cluster.report.chart_rates import Rate
from cluster.report.folder import Part, RunFolder
from cluster.report.monitor_part import target_fpr
from cluster.report.show import count, interval, number, percent
from cluster.report.topics import ProbeTopic


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One line: the figure and its interval on the left, what it means on the right.

    tone  `good`, `bad` or `plain`: the colour of the figure
    """

    figure: str
    range: str
    text: str
    aside: str = ""
    tone: str = "plain"


def summary(run: RunFolder, topics: list[ProbeTopic], rates: list[Rate]) -> list[Statement]:
    """Statements in the order of the report's parts; parts that are missing say nothing."""
    return [
        *[_probe(topic) for topic in topics[:1]],
        *([_others(topics[1:])] if topics[1:] else []),
        *[_transfer(part) for part in run.transfers],
        *[_weights(part) for part in run.deltas],
        *[_behaviour(part) for part in run.behaviours],
        *_monitor(rates, target_fpr(run)),
        *_store(run),
    ]


def _probe(topic: ProbeTopic) -> Statement:
    best = topic.probes[0]
    auroc, baselines = best["auroc"], best.get("baselines", {})
    beaten = all(baseline["high"] < auroc["low"] for baseline in baselines.values())
    strongest = max((baseline["value"] for baseline in baselines.values()), default=None)
    aside = f"AUROC on {count(auroc['units'])} {auroc['noun']}, none of which was in the training folds" + (
        "; the layer was chosen on inner folds." if len(best["sites"]) > 1 else "."
    )
    if strongest is not None:
        aside += f" The best baseline reaches {number(strongest)}."
    if not baselines:
        text = f"The {best['kind']} probe on {topic.words} was compared with no baseline: what it reads is not known."
        return Statement(figure=number(auroc["value"]), range=_bounds(auroc), text=text, aside=aside)
    if not beaten:
        text = (
            f"The {best['kind']} probe on {topic.words} does not clearly beat its baselines: it may have found those."
        )
        return Statement(figure=number(auroc["value"]), range=_bounds(auroc), text=text, aside=aside, tone="bad")
    label = best.get("label", "label")
    what = "the label" if label == "label" else f"“{label}”"
    text = f"A {best['kind']} probe at {best['chosen']} reads {what} of held-out prompts of the kind “{topic.words}”."
    return Statement(figure=number(auroc["value"]), range=_bounds(auroc), text=text, aside=aside, tone="good")


def _others(topics: list[ProbeTopic]) -> Statement:
    values = [topic.probes[0]["auroc"]["value"] for topic in topics]
    each = "; ".join(f"{topic.words} {interval(topic.probes[0]['auroc'])}" for topic in topics)
    return Statement(
        figure=f"{number(min(values), 2)} – {number(max(values), 2)}",
        range="lowest and highest AUROC",
        text="The same on "
        + (f"the other {len(topics)} kinds of prompts." if len(topics) > 1 else "the other kind of prompts."),
        aside=each + ".",
    )


def _transfer(part: Part) -> Statement:
    off = [cell for cell in part.record["cells"] if cell["fitted_on"] != cell["measured_on"]]
    inverted = [cell for cell in off if verdict(cell) == "inverted"]
    chance = [cell for cell in off if verdict(cell) == "chance"]
    worst = sorted(inverted, key=lambda cell: cell["auroc"]["value"])[:2]
    named = "; ".join(
        f"{cell['fitted_on']} on {cell['measured_on']} {interval(cell['auroc'])}".replace("_", " ") for cell in worst
    )
    text = (
        f"Of {len(off)} transfers to another kind of prompts {len(inverted)} are inverted and {len(chance)} "
        "are not told from chance."
        if inverted or chance
        else f"All {len(off)} transfers to another kind of prompts keep their direction."
    )
    aside = f"An inverted probe has learned something else than the label: {named}." if named else ""
    return Statement(
        figure=f"{len(inverted)} of {len(off)}",
        range="transfers inverted",
        text=text,
        aside=aside,
        tone="bad" if inverted else "good",
    )


def _weights(part: Part) -> Statement:
    matrices = part.record["matrices"]
    changed = [matrix for matrix in matrices if matrix["significant"]]
    if not changed:
        return Statement(
            figure="0",
            range="matrices changed",
            text="The fine-tune changed no matrix by more than rounding.",
            tone="bad",
        )
    triples = sum(matrix["significant"] for matrix in changed)
    top = max(changed, key=lambda matrix: matrix["sigma"][0])
    return Statement(
        figure=count(triples),
        range=f"directions in {len(changed)} matrices",
        text="The fine-tune's change of weights has this many directions above the noise of rounding.",
        aside=f"The strongest is in {top['name']}, σ₁ = {number(top['sigma'][0])}.",
    )


def _behaviour(part: Part) -> Statement:
    rows = part.record["behaviour"]
    shown = next((row for row in rows if row["triggered"]), rows[0])
    others = [row for row in rows if row is not shown]
    aside = "; ".join(f"{row['name']}: {interval(row['rate'], as_percent=True)}" for row in others)
    return Statement(
        figure=percent(shown["rate"]["value"]),
        range=_bounds(shown["rate"], as_percent=True),
        text=f"of {count(shown['n'])} answers show the behaviour that was hidden in the fine-tune, {shown['name']}.",
        aside=f"{aside}." if aside else "",
        tone="plain",
    )


def _monitor(rates: list[Rate], target: float | None) -> list[Statement]:
    """target: the false-positive rate that the monitor was set for, None where the folder does not say."""
    said = []
    hits = [rate for rate in rates if rate.wanted == "high"]
    quiet = [rate for rate in rates if rate.wanted == "low"]
    for rate in hits:
        good = rate.rate["low"] > 0.5
        said.append(
            Statement(
                figure=percent(rate.rate["value"]),
                range=_bounds(rate.rate, as_percent=True),
                text=f"of {count(rate.n)} prompts in “{rate.name}” are flagged by the monitor (recall).",
                tone="good" if good else "bad",
            )
        )
    for rate in sorted(quiet, key=lambda rate: -rate.rate["value"])[:1]:
        which = f": the highest false-positive rate of {len(quiet)} clean sets." if len(quiet) > 1 else "."
        said.append(
            Statement(
                figure=percent(rate.rate["value"]),
                range=_bounds(rate.rate, as_percent=True),
                text=f"of {count(rate.n)} clean prompts in “{rate.name}” are flagged too{which}",
                aside="; ".join(f"{o.name} {interval(o.rate, as_percent=True)}" for o in quiet if o is not rate),
                tone=_quiet_tone(rate.rate, target),
            )
        )
    return said


def _quiet_tone(rate: dict[str, Any], target: float | None) -> str:
    """Of a false-positive rate: good or bad only where its whole interval is on one side of the target."""
    if target is None:
        return "plain"
    if rate["high"] <= target:
        return "good"
    return "bad" if rate["low"] > target else "plain"


def _store(run: RunFolder) -> list[Statement]:
    incomplete = [part.name for part in [*run.infos, *run.harvests] if not part.record["complete"]]
    refused = [part for part in run.harvests if part.record.get("certificate") and not part.record["certificate"]["ok"]]
    uncertified = [part.name for part in refused if part.record["certificate"].get("left_out")]
    broken = [part.name for part in refused if part.name not in uncertified]
    said = (
        (
            incomplete,
            "incomplete",
            "bad",
            "The store lacks cells: figures speak of what is there. Rerun the harvest, it resumes.",
        ),
        (broken, "exceeded", "bad", "The correctness certificate's bound is exceeded: do not trust these activations."),
        (
            uncertified,
            "not certified",
            "plain",
            "No prompt could be run again in float32: nothing is known of these activations' errors.",
        ),
    )
    return [
        Statement(figure=figure, range=", ".join(names), tone=tone, text=text)
        for names, figure, tone, text in said
        if names
    ]


def _bounds(record: dict[str, Any], *, as_percent: bool = False) -> str:
    if as_percent:
        return f"95 %: {percent(record['low'])} to {percent(record['high'])}"
    return f"95 %: {number(record['low'])} to {number(record['high'])}"
