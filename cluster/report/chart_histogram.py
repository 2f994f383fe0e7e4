"""How scores are spread in either class: one histogram up, the other down, so that neither hides the other.

Words stand where bars are rarely high: of positive prompts at low scores, of the others at high ones.
"""

import numpy as np
from markupsafe import Markup

from cluster.report.show import count
from cluster.report.svg import Drawing, Scale, ticks, x_axis

LEFT, RIGHT, TOP, BOTTOM = 38, 396, 30, 216
MIDDLE = (TOP + BOTTOM) / 2
BINS = 40


def histogram_chart(scores: np.ndarray, labels: np.ndarray, *, positive: str, label: str) -> Markup:
    """A panel: bars are shares of their own class, as classes may be of different sizes.

    scores    float [n], finite; the few beyond the axis, which ends 6 standard deviations off, are in its last bins
    labels    bool [n]; `positive` is what the true ones are called, `label` what the axis is
    """
    inner = scores[np.abs(scores - scores.mean()) <= 6 * (scores.std() or 1.0)]
    low, high = float(inner.min()), float(inner.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = [np.histogram(np.clip(scores[mask], edges[0], edges[-1]), edges)[0] for mask in (labels, ~labels)]
    shares = [held / max(1, held.sum()) for held in counts]
    top = 1.25 * max(float(share.max()) for share in shares)  # room for words
    x = Scale(low=float(edges[0]), high=float(edges[-1]), start=LEFT, stop=RIGHT)
    height = Scale(low=0.0, high=top, start=0.0, stop=MIDDLE - TOP)
    drawing = Drawing(width=420, height=252, title="histogram of scores by class")
    drawing.text(LEFT, 14, "Scores by class", "panel-title")
    values = ticks(float(edges[0]), float(edges[-1]), 6)
    for value in values:
        drawing.line(x(value), TOP, x(value), BOTTOM, "grid")
    x_axis(drawing, x, values, bottom=BOTTOM)
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 30, label, "small", "middle")
    for share, held, css, upward in zip(shares, counts, ("dot bad", "dot quiet"), (True, False), strict=True):
        for place in np.flatnonzero(held):
            left, right = x(float(edges[place])), x(float(edges[place + 1]))
            tall = height(float(share[place]))
            told = f"{count(int(held[place]))} prompts from {edges[place]:.2f} to {edges[place + 1]:.2f}"
            above = MIDDLE - tall if upward else MIDDLE
            drawing.rect(left, round(above, 2), round(right - left - 0.6, 2), tall, css, title=told)
    drawing.line(LEFT, MIDDLE, RIGHT, MIDDLE, "chance")
    drawing.text(LEFT, TOP + 8, f"↑ {positive}, n = {count(int(labels.sum()))}", "small")
    drawing.text(RIGHT, BOTTOM - 4, f"↓ other, n = {count(int((~labels).sum()))}", "small", "end")
    return drawing.render()
