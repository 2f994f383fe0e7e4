"""Charts as inline SVG, drawn without any script: scales, axes and marks.

Colours come from the page's style sheet through classes, so that one drawing serves light and dark. Every mark has
a title, which browsers show on hovering and screen readers read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from cluster.report.show import plain


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear map from [low, high] to pixels [start, stop]; values outside are held at the ends."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        share = min(1.0, max(0.0, (value - self.low) / span))
        return round(self.start + share * (self.stop - self.start), 2)


@dataclass
class Drawing:
    """Parts of one SVG of `width` × `height` units, scaled to the column it stands in."""

    width: float
    height: float
    title: str
    parts: list[Markup] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str, title: str = "") -> None:
        self._add("line", f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"', css, title)

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        if points:
            steps = " ".join(f"{'M' if not i else 'L'}{x} {y}" for i, (x, y) in enumerate(points))
            self._add("path", f'd="{steps}"', css)

    def area(self, upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], css: str) -> None:
        if upper:
            outline = [*upper, *reversed(lower)]
            steps = " ".join(f"{'M' if not i else 'L'}{x} {y}" for i, (x, y) in enumerate(outline))
            self._add("path", f'd="{steps}Z"', css)

    def circle(self, x: float, y: float, r: float, css: str, title: str = "") -> None:
        self._add("circle", f'cx="{x}" cy="{y}" r="{r}"', css, title)

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, title: str = "", opacity: float | None = None
    ) -> None:
        shade = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
        self._add("rect", f'x="{x}" y="{y}" width="{width}" height="{height}"{shade}', css, title)

    def text(self, x: float, y: float, content: str, css: str = "", anchor: str = "start", turn: float = 0) -> None:
        turned = f' transform="rotate({turn} {x} {y})"' if turn else ""
        self.parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}" class="{}"{}>{}</text>').format(
                x, y, anchor, css, Markup(turned), plain(content)
            )
        )

    def render(self) -> Markup:
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            self.width, self.height, self.title
        )
        return head + Markup("").join(self.parts) + Markup("</svg>")

    def _add(self, tag: str, attributes: str, css: str, title: str = "") -> None:
        inner = Markup("<title>{}</title>").format(plain(title)) if title else Markup("")
        # `attributes` holds numbers formatted above, never text of a prompt.
        self.parts.append(Markup(f'<{tag} class="{escape(css)}" {attributes}>{inner}</{tag}>'))


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values in [low, high], about `wanted` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / wanted
    power = 10.0 ** _floor_log10(raw)
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw), 10 * power)
    first = int(-(-low // step))
    return [round(i * step, 10) for i in range(first, int(high / step + 1e-9) + 1)]


def y_axis(
    drawing: Drawing, scale: Scale, values: Iterable[float], *, left: float, right: float, form: str = "{:g}"
) -> None:
    """Grid lines with their values on the left."""
    for value in values:
        y = scale(value)
        drawing.line(left, y, right, y, "grid")
        drawing.text(left - 6, y + 3.5, form.format(value).replace("-", "−"), "tick", "end")


def x_axis(drawing: Drawing, scale: Scale, values: Iterable[float], *, bottom: float, form: str = "{:g}") -> None:
    """Values under the bottom line."""
    for value in values:
        drawing.text(scale(value), bottom + 15, form.format(value).replace("-", "−"), "tick", "middle")


def _floor_log10(value: float) -> int:
    power = 0
    while value >= 10:
        value, power = value / 10, power + 1
    while value < 1:
        value, power = value * 10, power - 1
    return power
