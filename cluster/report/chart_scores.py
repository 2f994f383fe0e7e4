"""Every prompt's score as a dot, one row a set of prompts, with the threshold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cluster.report.show import number
from cluster.report.svg import Drawing, Scale, ticks, x_axis

LEFT, RIGHT, ROW, RADIUS = 190, 744, 62, 2.3


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """A row: one score a prompt; `positive` sets are those that should be flagged."""

    name: str
    scores: Sequence[float]
    positive: bool


def scores_chart(sets: Sequence[ScoredSet], *, threshold: float | None, label: str) -> Markup:
    """Dots pile up around the middle of their row where scores are alike. Scores beyond the axis stand at its ends."""
    everything = [score for row in sets for score in row.scores] + ([] if threshold is None else [threshold])
    low, high = min(everything), max(everything)
    margin = 0.03 * ((high - low) or 1.0)
    x = Scale(low=low - margin, high=high + margin, start=LEFT, stop=RIGHT)
    bottom = 20 + ROW * len(sets)
    drawing = Drawing(width=760, height=bottom + 40, title="scores of prompts, by set")
    for value in ticks(low, high, 6):
        drawing.line(x(value), 14, x(value), bottom, "grid")
    x_axis(drawing, x, ticks(low, high, 6), bottom=bottom)
    drawing.text((LEFT + RIGHT) / 2, bottom + 34, label, "small", "middle")
    for turn, row in enumerate(sets):
        y = 20 + ROW * (turn + 0.5)
        drawing.text(LEFT - 12, y + 4, row.name, "label", "end")
        _pile(drawing, x, y, row)
    if threshold is None:
        return drawing.render()
    drawing.line(x(threshold), 10, x(threshold), bottom, "threshold", title=f"threshold {number(threshold)}")
    near_end = x(threshold) > (LEFT + RIGHT) / 2
    drawing.text(x(threshold) + (-4 if near_end else 4), 9, "threshold", "small", "end" if near_end else "start")
    return drawing.render()


def _pile(drawing: Drawing, x: Scale, middle: float, row: ScoredSet) -> None:
    """Dots in columns as wide as a dot; a full column is squeezed into the height of its row."""
    columns: dict[int, list[float]] = defaultdict(list)
    for score in sorted(row.scores):
        columns[round(x(score) / (2 * RADIUS))].append(score)
    css = "dot bad" if row.positive else "dot quiet"
    for scores in columns.values():
        step = min(2 * RADIUS, (ROW - 12) / max(1, len(scores) - 1))
        for place, score in enumerate(scores):
            offset = (place - (len(scores) - 1) / 2) * step
            drawing.circle(x(score), round(middle + offset, 2), RADIUS, css)
