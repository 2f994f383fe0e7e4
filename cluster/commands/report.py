"""`thresher report`: the JSON of a run as one HTML page."""

from typing import Annotated

import typer

from cluster.console import JsonFlag, emit, out
from cluster.report import write_report
from store.direction import check_writable


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Folder with the JSON of thresher's commands.")],
    html: Annotated[str, typer.Option("--html", help="The page to write.")],
    as_json: JsonFlag = False,
) -> None:
    """Writes one self-contained HTML page of what a run found. It works offline and holds no script."""
    check_writable(html)
    path = write_report(directory, html)
    emit(as_json, {"report": str(path), "bytes": path.stat().st_size}, lambda: out.print(str(path), soft_wrap=True))
