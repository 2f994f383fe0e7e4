"""The transfer matrix: probes of one kind of prompts on the others."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cluster.report.show import interval, number, plain
from cluster.report.svg import Drawing

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP = 104, 46, 140, 40
LEAST_WIDTH = 760  # a small matrix is not blown up
ROW_LETTERS, COLUMN_LETTERS = 21, 16  # that fit beside and above a cell


def transfer_chart(cells: Sequence[dict[str, Any]]) -> Markup:
    """A row a kind that was fitted on, a column a kind that was measured on.

    cells  {fitted_on, measured_on, auroc: {value, low, high}, inverted}
    """
    rows = list(dict.fromkeys(cell["fitted_on"] for cell in cells))
    columns = list(dict.fromkeys(cell["measured_on"] for cell in cells))
    width, height = max(LEAST_WIDTH, LEFT + CELL_WIDTH * len(columns) + 8), TOP + CELL_HEIGHT * len(rows) + 8
    drawing = Drawing(width=width, height=height, title="transfer between kinds of prompts")
    drawing.text(LEFT, 12, "measured on →", "small")
    drawing.text(LEFT - 10, TOP - 12, "fitted on ↓", "small", "end")
    for number_, name in enumerate(columns):
        drawing.text(LEFT + CELL_WIDTH * (number_ + 0.5), TOP - 10, _words(name, COLUMN_LETTERS), "label", "middle")
    for number_, name in enumerate(rows):
        drawing.text(LEFT - 10, TOP + CELL_HEIGHT * (number_ + 0.5) + 4, _words(name, ROW_LETTERS), "label", "end")
    for cell in cells:
        _cell(drawing, cell, rows.index(cell["fitted_on"]), columns.index(cell["measured_on"]))
    return drawing.render()


def _cell(drawing: Drawing, cell: dict[str, Any], row: int, column: int) -> None:
    auroc = cell["auroc"]
    x, y = LEFT + CELL_WIDTH * column, TOP + CELL_HEIGHT * row
    title = f"fitted on {cell['fitted_on']}, measured on {cell['measured_on']}: AUROC {interval(auroc)}"
    strength = min(1.0, abs(auroc["value"] - 0.5) * 2)
    side = "above" if auroc["value"] >= 0.5 else "below"
    drawing.rect(x + 1, y + 1, CELL_WIDTH - 2, CELL_HEIGHT - 2, f"cell {side}", title, opacity=0.04 + 0.62 * strength)
    if cell["fitted_on"] == cell["measured_on"]:
        drawing.rect(x + 1.5, y + 1.5, CELL_WIDTH - 3, CELL_HEIGHT - 3, "outline")
    mark = {"inverted": " ▼", "chance": " ~", "": ""}[verdict(cell)]
    drawing.text(x + CELL_WIDTH / 2, y + 20, number(auroc["value"]) + mark, "cell-value", "middle")
    bounds = f"{number(auroc['low'], 2)} – {number(auroc['high'], 2)}"
    drawing.text(x + CELL_WIDTH / 2, y + 36, bounds, "cell-note", "middle")


def verdict(cell: dict[str, Any]) -> str:
    """`inverted` where the whole interval is below one half, `chance` where it holds one half, otherwise empty."""
    low, high = cell["auroc"]["low"], cell["auroc"]["high"]
    if high < 0.5:
        return "inverted"
    return "chance" if low <= 0.5 else ""


def _words(name: str, most: int) -> str:
    """The name as words; of a long one its beginning and its end, where names of one kind differ."""
    words = plain(name.replace("_", " "))
    return words if len(words) <= most else f"{words[: most // 2 - 2]}…{words[-(most - most // 2) :]}"
