"""The page of a transfer matrix: which probes carry over, which do not, and which are inverted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.report.chart_matrix import transfer_chart, verdict
from cluster.report.folder import Part, RunFolder
from cluster.report.html import render_page
from cluster.report.show import count, interval, plain
from cluster.report.summary import summary

WORDS = {"inverted": "inverted", "chance": "not told from chance", "": ""}


def render_transfer(cells: Sequence[dict[str, Any]], *, title: str) -> str:
    """The page of the cells of `thresher probe transfer`, {fitted_on, measured_on, sites, n, auroc, inverted}."""
    named = [{**cell, **{key: plain(cell[key]) for key in ("fitted_on", "measured_on")}} for cell in cells]
    run = RunFolder(path=Path(title), transfers=[Part(name="transfer", record={"cells": named})])
    off = any(cell["fitted_on"] != cell["measured_on"] for cell in named)
    return render_page(
        "probe_transfer.html.jinja",
        brand="Thresher probe",
        title="Does it carry over?",
        subtitle=plain(title),
        statements=summary(run, [], []) if off else [],
        chart=transfer_chart(named),
        rows=[
            {
                "fitted_on": cell["fitted_on"],
                "measured_on": cell["measured_on"],
                "sites": cell["sites"],
                "n": count(cell["n"]),
                "auroc": interval(cell["auroc"]),
                "verdict": WORDS[verdict(cell)],
                "caveat": cell["auroc"].get("caveat"),
            }
            for cell in named
        ],
    )
