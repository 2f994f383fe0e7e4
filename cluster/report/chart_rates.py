"""Rates with their intervals, one row each, on one axis from 0 to 100 %."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cluster.report.show import count, interval
from cluster.report.svg import Drawing, Scale

LEFT, RIGHT, ROW = 210, 566, 27


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One row. `rate` has value, low and high; `wanted` says whether high is good ("high") or low ("low")."""

    name: str
    n: int
    rate: dict[str, Any]
    wanted: str


def rates_chart(rates: Sequence[Rate], *, title: str, target: float | None = None) -> Markup:
    """Rows from top to bottom; `target` is the rate a threshold was set for, drawn as a line."""
    bottom = 14 + ROW * len(rates)
    x = Scale(low=0.0, high=1.0, start=LEFT, stop=RIGHT)
    drawing = Drawing(width=760, height=bottom + 26, title=title)
    for share in (0, 0.25, 0.5, 0.75, 1):
        drawing.line(x(share), 8, x(share), bottom, "grid")
        drawing.text(x(share), bottom + 16, f"{100 * share:.0f} %", "tick", "middle")
    if target is not None:
        drawing.line(x(target), 8, x(target), bottom, "threshold", title=f"set for {100 * target:g} %")
    for turn, row in enumerate(rates):
        y = 14 + ROW * (turn + 0.5)
        css = "good" if row.wanted == "high" else "bad"
        drawing.text(LEFT - 12, y + 4, row.name, "label", "end")
        drawing.line(x(row.rate["low"]), y, x(row.rate["high"]), y, f"bar {css}")
        drawing.circle(
            x(row.rate["value"]), y, 4.6, f"dot {css}", title=f"{row.name}: {interval(row.rate, as_percent=True)}"
        )
        drawing.text(RIGHT + 16, y + 4, f"{interval(row.rate, as_percent=True)}  n = {count(row.n)}", "label")
    return drawing.render()
