"""AUROC by layer: one panel a kind of prompts, one line a kind of probe, baselines as horizontal lines."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cluster.report.show import interval, number
from cluster.report.svg import Drawing, Scale, x_axis, y_axis
from store import Site

LEFT, RIGHT, TOP, BOTTOM = 38, 346, 30, 196
BASELINES = {"bag_of_words": "words", "length": "length", "embedding": "embed."}


def layers_chart(title: str, probes: Sequence[dict[str, Any]], layers: tuple[int, int]) -> Markup:
    """A panel.

    probes  JSON of `thresher probe fit` of one kind of prompts, each with its `sites`
    layers  first and last layer of the axis, so that panels share it
    """
    lowest = min(site["auroc"]["low"] for probe in probes for site in probe["sites"])
    floor = 0.4 if lowest >= 0.4 else (0.2 if lowest >= 0.2 else 0.0)
    y = Scale(low=floor, high=1.0, start=BOTTOM, stop=TOP)
    x = Scale(low=layers[0] - 0.6, high=layers[1] + 0.6, start=LEFT, stop=RIGHT)
    drawing = Drawing(width=420, height=228, title=f"AUROC by layer, {title}")
    drawing.text(LEFT, 14, title, "panel-title")
    y_axis(
        drawing,
        y,
        [v / 10 for v in range(int(floor * 10), 11, 2)],
        left=LEFT,
        right=RIGHT,
        form="{:.1f}",
    )
    drawing.line(LEFT, y(0.5), RIGHT, y(0.5), "chance")
    marked = sorted({site_layer(site["site"]) for probe in probes for site in probe["sites"]})
    x_axis(drawing, x, [layer for layer in marked if layer >= 0], bottom=BOTTOM, form="{:.0f}")
    if -1 in marked:
        drawing.text(x(-1), BOTTOM + 15, "emb.", "tick", "middle")
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 30, "layer", "small", "middle")
    _baselines(drawing, y, probes)
    for turn, probe in enumerate(sorted(probes, key=lambda probe: probe["kind"])):
        _line(drawing, x, y, probe, css=f"series-{turn + 1}", shift=(turn - (len(probes) - 1) / 2) * 0.36)
    return drawing.render()


def _baselines(drawing: Drawing, y: Scale, probes: Sequence[dict[str, Any]]) -> None:
    """Lines with names and values on the right, moved apart where they would overlap; below the axis at its end."""
    known = probes[0].get("baselines", {})
    shown = [(known[key]["value"], word, interval(known[key])) for key, word in BASELINES.items() if key in known]
    shuffled = [site["shuffled_auroc"] for probe in probes for site in probe["sites"] if site.get("shuffled_auroc")]
    if shuffled:
        shown.append((max(shuffled), "shuffled", f"{number(max(shuffled))}, the highest of all sites"))
    previous = 1e9
    for value, word, said in sorted(shown):
        drawing.line(LEFT, y(value), RIGHT, y(value), "baseline", title=f"baseline {word}: AUROC {said}")
        place = min(y(value) + 3, previous - 11)
        drawing.text(RIGHT + 4, place, f"{word} {number(value, 2)}", "small")
        previous = place


def _line(drawing: Drawing, x: Scale, y: Scale, probe: dict[str, Any], *, css: str, shift: float) -> None:
    sites = sorted(probe["sites"], key=lambda site: site_layer(site["site"]))
    drawing.path([(x(site_layer(s["site"]) + shift), y(s["auroc"]["value"])) for s in sites], f"stroke {css}")
    for site in sites:
        at, auroc = x(site_layer(site["site"]) + shift), site["auroc"]
        chosen = site["site"] == probe.get("chosen")
        title = f"{probe['kind']} at {site['site']}: AUROC {interval(auroc)}"
        drawing.line(at, y(auroc["low"]), at, y(auroc["high"]), f"whisker {css}", title=title)
        if chosen:
            drawing.circle(at, y(auroc["value"]), 7, f"ring {css}")
        drawing.circle(
            at, y(auroc["value"]), 3.6, f"dot {css}", title=title + (" (chosen on inner folds)" if chosen else "")
        )


def site_layer(name: str) -> int:
    """Where a site stands on the axis: its layer; the embedding's output stands before the first block, at −1."""
    site = Site.parse(name)
    if site.kind == "resid_pre" and site.layer == 0:
        return -1
    return site.layer if site.layer is not None else -1
