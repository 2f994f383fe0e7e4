"""What monitors said, as rows of the charts."""

from typing import Any

from cluster.report.chart_rates import Rate
from cluster.report.chart_scores import ScoredSet
from cluster.report.folder import RunFolder


def scored_sets(run: RunFolder) -> tuple[list[ScoredSet], float | None]:
    """A row for each scored set, those that should be flagged first, and the monitor's threshold where it is known."""
    sets = [
        ScoredSet(
            name=_words(part.name),
            scores=[prompt["score"] for prompt in part.record["prompts"] if prompt["score"] is not None],
            positive=_should_fire(part.name),
        )
        for part in run.scores
    ]
    return sorted(sets, key=lambda row: not row.positive), _threshold(run)


def monitor_rates(run: RunFolder) -> list[Rate]:
    """The rate of each set, with its interval."""
    rows = [
        Rate(
            name=_words(part.name),
            n=part.record["n"],
            rate=part.record["rate"],
            wanted="high" if _should_fire(part.name) else "low",
        )
        for part in run.scores
    ]
    return sorted(rows, key=lambda row: row.wanted != "high")


def target_fpr(run: RunFolder) -> float | None:
    """The false-positive rate that the threshold was set for; None without the JSON of `thresher monitor fit`."""
    return next((float(part.record["calibration"]["fpr"]) for part in run.monitors), None)


def behaviour_rates(record: dict[str, Any]) -> list[Rate]:
    """How often the hidden behaviour shows, by set of prompts."""
    return [
        Rate(name=row["name"], n=row["n"], rate=row["rate"], wanted="high" if row["triggered"] else "low")
        for row in record["behaviour"]
    ]


def _threshold(run: RunFolder) -> float | None:
    return next(
        (float(part.record["threshold"]) for part in [*run.monitors, *run.scores] if "threshold" in part.record), None
    )


def _should_fire(name: str) -> bool:
    return name.startswith("triggered")


def _words(name: str) -> str:
    return name.removesuffix(".score").replace("_", " ").replace("-", " ")
