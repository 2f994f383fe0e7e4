"""What a fine-tune changed: singular values of ΔW by layer and matrix."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cluster.report.show import number, percent
from cluster.report.svg import Drawing, Scale, ticks, x_axis, y_axis

LEFT, RIGHT, TOP, BOTTOM = 46, 366, 26, 150


def spectra_charts(matrices: Sequence[dict[str, Any]]) -> list[Markup]:
    """A panel for each role a matrix can have: at each layer a column of dots, the singular values, on one scale.

    matrices  those of `thresher weights`. Dots above the noise of rounding are filled, the others hollow.
    """
    changed = [matrix for matrix in matrices if matrix["sigma"]]
    if not changed:
        return []
    top = max(matrix["sigma"][0] for matrix in changed)
    layers = [matrix["layer"] for matrix in changed if matrix["layer"] is not None] or [0]
    roles = dict.fromkeys(matrix["role"] for matrix in changed)
    return [_panel(role, [m for m in changed if m["role"] == role], top=top, last=max(layers)) for role in roles]


def strongest(matrices: Sequence[dict[str, Any]], number_of: int = 12) -> list[dict[str, Any]]:
    """The matrices with the largest first singular value."""
    return sorted((m for m in matrices if m["sigma"]), key=lambda m: -m["sigma"][0])[:number_of]


def _panel(role: str, matrices: Sequence[dict[str, Any]], *, top: float, last: int) -> Markup:
    x = Scale(low=-0.8, high=last + 0.8, start=LEFT, stop=RIGHT)
    y = Scale(low=0.0, high=top * 1.05, start=BOTTOM, stop=TOP)
    drawing = Drawing(width=380, height=186, title=f"singular values of the change by layer, {role}")
    sides = {"left": "writes to the residual stream", "right": "reads from it"}
    drawing.text(LEFT, 13, role.replace("_", " "), "panel-title")
    drawing.text(RIGHT, 13, sides.get(matrices[0].get("side") or "", ""), "small", "end")
    y_axis(drawing, y, ticks(0, top * 1.05, 4), left=LEFT, right=RIGHT)
    x_axis(drawing, x, [v for v in ticks(0, last, 6) if v == int(v)], bottom=BOTTOM, form="{:.0f}")
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 30, "layer", "small", "middle")
    for matrix in matrices:
        at = x(matrix["layer"] if matrix["layer"] is not None else -0.5)
        drawing.line(at, y(0), at, y(matrix["sigma"][0]), "stem")
        for rank, sigma in enumerate(matrix["sigma"]):
            css = "sigma" if rank < matrix["significant"] else "sigma hollow"
            drawing.circle(
                at, y(sigma), 2.6 if rank == 0 else 1.9, css, title=_title(matrix, rank) if rank == 0 else ""
            )
    return drawing.render()


def _title(matrix: dict[str, Any], rank: int) -> str:
    return (
        f"{matrix['name']}: σ₁ {number(matrix['sigma'][rank])}, {matrix['significant']} triples above the noise, "
        f"stable rank {number(matrix['stable_rank'], 1)}, {percent(matrix['energy'], 0)} of the energy kept"
    )
