"""`thresher gc`: removes what no receipt names."""

import re
from typing import Annotated

import typer

from cluster.console import JsonFlag, emit, out
from store import InputError, Store
from store.removal import collect, garbage

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def register(app: typer.Typer) -> None:
    app.command("gc")(gc)


def gc(
    store: Annotated[str, typer.Argument(help="The store.")],
    older_than: Annotated[str, typer.Option(help="Grace time, e.g. 7d, 12h.")] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Removes attempts that lost or were killed. A harvest may still be writing the young ones: they stay."""
    opened = Store.open(store)
    folders = garbage(opened, older_than=parse_age(older_than))
    files = 0 if dry_run else sum(collect(opened, folder) for folder in folders)
    data = {"store": opened.path, "attempts": folders, "files_removed": files, "dry_run": dry_run}
    verb = "would go" if dry_run else "removed"
    emit(as_json, data, lambda: out.print(f"{len(folders)} attempts {verb}"))


def parse_age(text: str) -> float:
    """Seconds of `7d`, `12h`, `30m`, `45s`. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise InputError(f"{text!r} is no age: write a number and s, m, h or d, e.g. 7d")
    return float(int(match[1]) * SECONDS[match[2]])
