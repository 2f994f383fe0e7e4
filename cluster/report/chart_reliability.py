"""The reliability curve: how often the label is true where a probe says so with some probability."""

from collections.abc import Sequence

from markupsafe import Markup

from analysis.statistics.calibration import ReliabilityBin
from cluster.report.show import count, interval, number
from cluster.report.svg import Drawing, Scale, x_axis, y_axis

LEFT, RIGHT, TOP, BOTTOM = 38, 396, 30, 216


def reliability_chart(bins: Sequence[ReliabilityBin]) -> Markup:
    """A panel; a probe whose probabilities mean what they say stands on the diagonal."""
    x = Scale(low=0.0, high=1.0, start=LEFT, stop=RIGHT)
    y = Scale(low=0.0, high=1.0, start=BOTTOM, stop=TOP)
    shares = [v / 5 for v in range(6)]
    drawing = Drawing(width=420, height=252, title="reliability curve")
    drawing.text(LEFT, 14, "Share of true labels by probability", "panel-title")
    y_axis(drawing, y, shares, left=LEFT, right=RIGHT, form="{:.1f}")
    x_axis(drawing, x, shares, bottom=BOTTOM, form="{:.1f}")
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 30, "probability that the probe gives", "small", "middle")
    drawing.line(x(0), y(0), x(1), y(1), "chance")
    drawing.path([(x(each.probability), y(each.frequency.value)) for each in bins], "curve series-1")
    for each in bins:
        at, told = x(each.probability), each.frequency.record()
        drawing.line(at, y(each.frequency.low), at, y(each.frequency.high), "whisker series-1")
        title = f"probability {number(each.probability)}: true in {interval(told)} of {count(each.rows)} prompts"
        drawing.circle(at, y(each.frequency.value), 3.6, "dot series-1", title=title)
    return drawing.render()
