"""`thresher families`: which fine-tunes of one base learned alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.console import JsonFlag, emit, out
from store import InputError

if TYPE_CHECKING:
    from analysis.weights.families import Families

COLUMNS = 12  # models whose similarities are printed as a matrix


def register(app: typer.Typer) -> None:
    app.command("families")(families)


def families(
    deltas: Annotated[list[str], typer.Argument(metavar="DELTA…", help="Folders of 'thresher weights', one base.")],
    alike: Annotated[
        float,
        typer.Option("--alike", min=0.0, max=1.0, help="Similarity from which models are one family."),
    ] = 0.1,
    as_json: JsonFlag = False,
) -> None:
    """Compares the subspaces that fine-tunes of one base changed: similarities, families, each model's nearest.

    Similarity is 0 between unrelated subspaces in expectation, 1 where one model's lie within the other's.
    """
    # Imported here: torch takes seconds, and the other commands should not wait for it.
    from analysis import load_delta
    from analysis.weights.families import find_families, subspaces

    if len({str(Path(delta).resolve()) for delta in deltas}) != len(deltas):
        raise InputError("a folder is given twice: give each weight difference once")
    if len(deltas) < 2:
        raise InputError("one model has no family: give the folders of at least two weight differences of one base")
    records: list[dict[str, Any]] = []
    models = []
    for delta in deltas:
        record, directions = load_delta(delta)
        first = records[0] if records else record
        if record["base"]["digest"] != first["base"]["digest"]:
            raise InputError(
                f"{delta} is a difference from {record['base']['name']}, {deltas[0]} from {first['base']['name']}, "
                "which is another model: compare fine-tunes of one base"
            )
        for other, known in zip(deltas, records, strict=False):
            if known["tuned"]["digest"] == record["tuned"]["digest"]:
                raise InputError(f"{other} and {delta} are differences of the same model: give one of them")
        records.append(record)
        models.append(subspaces(directions))
    found = find_families(models, alike)
    data = _data(deltas, records, [sum(len(s.sigma) for s in model.values()) for model in models], alike, found)
    emit(as_json, data, lambda: _print(data))


def _data(
    deltas: list[str], records: list[dict[str, Any]], directions: list[int], alike: float, found: "Families"
) -> dict[str, Any]:
    everyone = range(len(deltas))
    return {
        "base": records[0]["base"]["name"],
        "alike": alike,
        "models": [
            {
                "delta": deltas[i],
                "model": records[i]["tuned"].get("adapter") or records[i]["tuned"]["name"],
                "directions": directions[i],
                "family": found.labels[i],
                "nearest": {"delta": deltas[found.nearest[i]], **vars(found.of(i, found.nearest[i]))},
            }
            for i in everyone
        ],
        "families": [[deltas[i] for i in everyone if found.labels[i] == f] for f in range(max(found.labels) + 1)],
        "similarity": [[1.0 if i == j else found.of(i, j).similarity for j in everyone] for i in everyone],
        "p": [[None if i == j else found.of(i, j).p for j in everyone] for i in everyone],
    }


def _print(data: dict[str, Any]) -> None:
    models = data["models"]
    if len(models) <= COLUMNS:
        table = Table(
            "", "model", *(str(i + 1) for i in range(len(models))), box=box.SIMPLE, title="similarity of the changes"
        )
        for i, model in enumerate(models):
            cells = ["·" if i == j else f"{value:.2f}" for j, value in enumerate(data["similarity"][i])]
            table.add_row(str(i + 1), Text(model["delta"]), *cells)
        out.print(table)
    table = Table("model", "directions", "family", "nearest", "similarity", "p, if random", "angles", box=box.SIMPLE)
    for model in models:
        near = model["nearest"]
        angles = "–" if near["matrix"] is None else f"{near['smallest_angle']:.0f}° to {near['largest_angle']:.0f}°"
        table.add_row(
            Text(model["delta"]),
            str(model["directions"]),
            str(model["family"] + 1),
            Text(near["delta"]),
            f"{near['similarity']:.2f}",
            f"{near['p']:.2g}",
            angles,
        )
    out.print(table)
    for number, members in enumerate(data["families"], start=1):
        out.print(f"family {number}: {', '.join(members)}", markup=False, soft_wrap=True)
    out.print(f"one family from a mean similarity of {data['alike']:g}; angles in the matrix that both changed most")
