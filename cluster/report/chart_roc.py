"""The ROC curve with its false-positive rates on a logarithmic axis: detectors live at its left end."""

from collections.abc import Sequence
from math import floor, log10
from typing import Any

import numpy as np
from markupsafe import Markup

from cluster.report.show import interval
from cluster.report.svg import Drawing, Scale, y_axis

LEFT, RIGHT, TOP, BOTTOM = 38, 396, 30, 216


def roc_chart(rates: np.ndarray, recalls: np.ndarray, points: Sequence[dict[str, Any]]) -> Markup:
    """A panel.

    rates, recalls  float [k], rates ascending from 0; a rate of 0 stands at the left end of the axis
    points          {fpr, recall, realised_fpr} with intervals, of thresholds set on other groups
    """
    smallest = float(rates[rates > 0].min(initial=1.0))
    decades = range(min(-1, floor(log10(smallest))), 1)
    x = Scale(low=decades[0], high=0.0, start=LEFT, stop=RIGHT)
    y = Scale(low=0.0, high=1.0, start=BOTTOM, stop=TOP)

    def at(rate: float) -> float:
        return x(log10(max(rate, 10.0 ** decades[0])))

    drawing = Drawing(width=420, height=252, title="ROC curve, false-positive rate on a logarithmic axis")
    drawing.text(LEFT, 14, "Recall by false-positive rate", "panel-title")
    y_axis(drawing, y, [v / 5 for v in range(6)], left=LEFT, right=RIGHT, form="{:.1f}")
    for decade in decades:
        drawing.line(x(decade), TOP, x(decade), BOTTOM, "grid")
        drawing.text(x(decade), BOTTOM + 15, f"{100 * 10.0**decade:g} %", "tick", "middle")
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 30, "false-positive rate", "small", "middle")
    chance = [10 ** (decades[0] * (1 - share / 40)) for share in range(41)]
    drawing.path([(at(rate), y(rate)) for rate in chance], "stroke chance")
    drawing.path([(at(rate), y(recall)) for rate, recall in _drawn(rates, recalls)], "curve series-1")
    for point in points:
        recall, realised = point["recall"], point["realised_fpr"]
        across, up = at(realised["value"]), y(recall["value"])
        drawing.line(across, y(recall["low"]), across, y(recall["high"]), "whisker series-2")
        drawing.line(at(realised["low"]), up, at(realised["high"]), up, "whisker series-2")
        told = f"recall {interval(recall)}, realised {interval(realised, as_percent=True)}"
        drawing.circle(across, up, 3.6, "dot series-2", title=f"set for {100 * point['fpr']:g} %: {told}")
    return drawing.render()


def _drawn(rates: np.ndarray, recalls: np.ndarray, most: int = 800) -> list[tuple[float, float]]:
    """At most about `most` of the curve's points: on a logarithmic axis the right end has many within a pixel."""
    if len(rates) <= most:
        return list(zip(rates.tolist(), recalls.tolist(), strict=True))
    smallest = float(rates[rates > 0].min())
    wanted = np.r_[0.0, np.geomspace(smallest, 1.0, most)]
    places = np.unique(np.r_[0, np.searchsorted(rates, wanted, side="right") - 1])
    return list(zip(rates[places].tolist(), recalls[places].tolist(), strict=True))
