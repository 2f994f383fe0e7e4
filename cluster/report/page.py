"""The report's page: parts of a run folder through its template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cluster.report.chart_layers import layers_chart
from cluster.report.chart_matrix import transfer_chart
from cluster.report.chart_rates import rates_chart
from cluster.report.chart_scores import scores_chart
from cluster.report.chart_spectra import spectra_charts, strongest
from cluster.report.exemplars import exemplars
from cluster.report.folder import RunFolder, read_folder
from cluster.report.html import render_page, write_page
from cluster.report.monitor_part import behaviour_rates, monitor_rates, scored_sets, target_fpr
from cluster.report.show import byte_size, count, interval, number, percent, visible
from cluster.report.summary import summary
from cluster.report.topics import ProbeTopic, layer_range, probe_topics

DIRECTIONS = 3  # of an audit that are shown


def write_report(folder: str | Path, html: str | Path) -> Path:
    """Writes the report of a run folder (see `cluster.report.folder` for its layout) and returns its path.

    Raises InputError where the folder holds nothing to report.
    """
    write_page(html, render(read_folder(folder)))
    return Path(html)


def render(run: RunFolder) -> str:
    """The whole page."""
    topics = probe_topics(run.probes)
    rates = monitor_rates(run)
    return render_page(
        "report.html.jinja",
        brand="Thresher report",
        title=_title(run),
        subtitle=_subtitle(run),
        statements=summary(run, topics, rates),
        topics=_topic_charts(topics),
        probe_kinds=sorted({probe["kind"] for topic in topics for probe in topic.probes}),
        refusals=refusals(topics),
        below_chance=any(
            baseline["high"] < 0.5
            for topic in topics
            for probe in topic.probes
            for baseline in probe.get("baselines", {}).values()
        ),
        probe_rows=[row for topic in topics for row in _probe_rows(topic)],
        transfers=[transfer_chart(part.record["cells"]) for part in run.transfers],
        deltas=[_delta(part.record) for part in run.deltas],
        target=target_fpr(run),
        score_chart=_score_chart(run),
        rate_chart=rates_chart(rates, title="share of prompts flagged", target=target_fpr(run)),
        exemplars=[
            {
                "direction": entry["direction"],
                "site": entry["site"],
                "label": entry.get("label"),
                "variance": entry.get("variance"),
                "prompts": exemplars(entry),
            }
            for part in run.audits
            for entry in part.record["directions"][:DIRECTIONS]
        ],
        behaviours=[_behaviour(part.record) for part in run.behaviours],
        infos=[_info(part.name, part.record) for part in run.infos],
        certificates=[_certificate(part.record) for part in run.harvests if part.record.get("certificate")],
        commands=_commands(run),
    )


def _title(run: RunFolder) -> str:
    models = [model["id"] for part in run.infos for model in part.record["models"]]
    return str(visible(models[0])) if models else run.path.resolve().name


def _subtitle(run: RunFolder) -> str:
    held = [f"{count(part.record['prompts'])} prompts, {count(part.record['tokens'])} tokens" for part in run.infos[:1]]
    made = [f"{len(run.probes)} probes"] * bool(run.probes) + [f"{len(run.scores)} scored sets"] * bool(run.scores)
    return " · ".join([*held, *made, str(run.path)])


def _topic_charts(topics: Sequence[ProbeTopic]) -> list[dict[str, Any]]:
    if not topics:
        return []
    layers = layer_range(topics)
    return [{"words": topic.words, "chart": layers_chart(topic.words, topic.probes, layers)} for topic in topics]


def _probe_rows(topic: ProbeTopic) -> list[dict[str, Any]]:
    rows = []
    for probe in topic.probes:
        baselines = probe.get("baselines", {})
        rows.append(
            {
                "words": topic.words,
                "kind": probe["kind"],
                "chosen": probe["chosen"],
                "auroc": interval(probe["auroc"]),
                "recalls": [recall_words(fpr, point) for fpr, point in probe["recall_at_fpr"].items()],
                **{
                    key: number(baselines[key]["value"]) if key in baselines else "–"
                    for key in ("bag_of_words", "length")
                },
            }
        )
    return rows


def refusals(topics: Sequence[ProbeTopic]) -> list[str]:
    """Why there is no recall at a rate, each reason once."""
    points = [(fpr, p) for topic in topics for probe in topic.probes for fpr, p in probe["recall_at_fpr"].items()]
    reasons = [f"Refused at {_rate(fpr)}: {p['reason']}." for fpr, p in points if p["value"] is None]
    return list(dict.fromkeys(reasons))


def _rate(fpr: str) -> str:
    """`0.1 %` of "0.001", with as many digits as it has."""
    return f"{100 * float(fpr):g} %"


def recall_words(fpr: str, point: dict[str, Any]) -> str:
    """A recall with its interval and the rate that was realised, or that it was refused."""
    if point["value"] is None:
        return f"at {_rate(fpr)}: refused, see below"
    return f"at {_rate(fpr)}: {interval(point, as_percent=True)} (realised {percent(point['realised_fpr'])})"


def _delta(record: dict[str, Any]) -> dict[str, Any]:
    matrices = record["matrices"]
    changed = [matrix for matrix in matrices if matrix["sigma"]]
    significant = sum(matrix["significant"] for matrix in matrices)
    return {
        "text": f"{len(changed)} of {len(matrices)} matrices that were looked at changed; {count(significant)} "
        f"singular triples stand above the noise. Computed in {number(record['seconds'], 1)} s with at most "
        f"{byte_size(record['peak_rss_bytes'])} of memory.",
        "notes": record.get("notes", []),
        "charts": spectra_charts(matrices),
        "strongest": strongest(matrices),
    }


def _score_chart(run: RunFolder) -> Markup | None:
    sets, threshold = scored_sets(run)
    return scores_chart(sets, threshold=threshold, label="score of a prompt") if sets else None


def _behaviour(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": record["description"],
        "chart": rates_chart(behaviour_rates(record), title="share of answers with the hidden behaviour"),
        "examples": [
            {"name": row["name"], "prompt": row["example"]["prompt"], "answer": row["example"]["answer"]}
            for row in record["behaviour"]
        ],
    }


def _info(name: str, record: dict[str, Any]) -> dict[str, Any]:
    state = "complete" if record["complete"] else "INCOMPLETE: rerun the harvest, it resumes"
    held = f"{count(record['prompts'])} prompts, {count(record['tokens'])} tokens"
    return {
        "name": record.get("store", name),
        "text": f"{held}, {byte_size(record['bytes'])} on disk, {state}.",
        **{key: record[key] for key in ("digest", "models", "columns")},
    }


def _certificate(record: dict[str, Any]) -> dict[str, Any]:
    certificate = record["certificate"]
    if certificate.get("left_out"):
        return {"text": f"Not certified: {certificate['left_out']}", "sites": {}}
    text = (
        f"{len(certificate['prompts'])} prompts were run again one by one in float32 and compared with what is stored: "
        + ("every error is within its bound." if certificate["ok"] else "an error exceeds its bound.")
    )
    return {"text": text, "sites": certificate["sites"]}


def _commands(run: RunFolder) -> str:
    """The command lines of a demo's run, where the folder keeps them."""
    file = run.path / "commands.txt"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
