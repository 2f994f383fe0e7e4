"""`thresher demo`: the whole story on a real small model."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.console import JsonFlag, emit, out


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    directory: Annotated[str, typer.Option("--out", help="Folder of the run; a rerun goes on in it.")] = "demo-out",
    seed: Annotated[int, typer.Option(help="Seed of prompts, fine-tune and folds.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Prompts, activations, probes, a fine-tune with a hidden behaviour, a monitor that finds it, and a report."""
    # Imported here: it loads torch, and 'thresher --help' should not.
    from cluster.demo.story import Settings, tell

    story = tell(Path(directory), Settings(seed=seed))
    report = Path(directory) / "report.html"
    data = {"report": str(report), "folder": directory, "seconds": story.seconds, "commands": story.said}
    emit(as_json, data, lambda: out.print(f"\nreport: [bold]{report.resolve()}[/]", soft_wrap=True))
