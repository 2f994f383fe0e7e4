"""Probes that belong on one chart: the same prompts, several kinds of probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.report.chart_layers import site_layer
from cluster.report.folder import Part

# The order in which kinds are shown; the first stands for its topic in the summary.
_FIRST = ("logistic", "lda", "mass-mean")


@dataclass(frozen=True, kw_only=True)
class ProbeTopic:
    """`name` as the files are called before the kind; `words` for reading; records of `thresher probe fit`."""

    name: str
    probes: list[dict[str, Any]]

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")


def probe_topics(parts: Sequence[Part]) -> list[ProbeTopic]:
    """Parts with the same name before their kind, in the order of their names.

    A file `cities.logistic.json` is of the topic `cities`; a record of one site counts as a search over that site.
    """
    topics: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        record = (
            part.record
            if part.record.get("sites")
            else {**part.record, "sites": [part.record], "chosen": part.record["site"]}
        )
        topics.setdefault(part.name.removesuffix(f".{record['kind']}"), []).append(record)
    order = {kind: place for place, kind in enumerate(_FIRST)}
    return [
        ProbeTopic(name=name, probes=sorted(records, key=lambda record: order.get(record["kind"], len(order))))
        for name, records in topics.items()
    ]


def layer_range(topics: Sequence[ProbeTopic]) -> tuple[int, int]:
    """First and last layer of any probe."""
    layers = [site_layer(site["site"]) for topic in topics for probe in topic.probes for site in probe["sites"]]
    return min(layers), max(layers)
