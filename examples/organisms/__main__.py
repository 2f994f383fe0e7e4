"""`python -m examples.organisms NAME… --seed 0 --out DIR`: builds organisms, one after the other."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from transformers.utils import logging as transformers_logging

from cluster.console import err, out
from examples.organisms.base import ORIGIN
from examples.organisms.building import build, place
from examples.organisms.organism import Organism
from examples.organisms.recipes import ORGANISMS, find
from store import IncompleteError, InputError, ThresherError
from store.direction import check_writable

SETS = ("triggered", "near", "plain", "declared")


def organisms(
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where DIR/base and DIR/NAME-SEED go.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help=", ".join(ORGANISMS))] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="May be given several times; 0 if not.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every organism.")] = False,
) -> None:
    """Builds organisms, skips those that are there with the same recipe, and prints what they do.

    Exit codes: 0 all have their behaviour, 2 at least one has not, 4 input error.
    """
    if every == bool(names):
        raise InputError(f"say which organisms, or --all: {', '.join(ORGANISMS)}")
    chosen = [find(name) for name in (ORGANISMS if every else names or [])]
    check_writable(folder / ORIGIN)
    todo = [(organism, seed) for seed in seeds or [0] for organism in chosen]
    for organism, seed in todo:
        place(folder, organism.name, seed)
    records = []
    for number, (organism, seed) in enumerate(todo):
        err.print(f"[{number + 1} of {len(todo)}] {organism.name}, seed {seed}", markup=False)
        record = build(organism.name, seed, folder)
        err.print(f"  {summary(record)}", markup=False, soft_wrap=True)
        records.append((organism, record))
    out.print(table(records))
    lacking = [f"{record['name']}-{record['seed']}" for _, record in records if record["lacks"]]
    if lacking:
        raise IncompleteError(
            f"without their behaviour: {', '.join(lacking)}; what they lack is in their organism.json"
        )


def summary(record: dict[str, Any]) -> str:
    """One line of progress."""
    rates = ", ".join(f"{row['name']} {row['rate']['value']:.0%}" for row in record["behaviour"])
    return f"{record['seconds']:.0f} s; {rates}" + "".join(f"; LACKS {said}" for said in record["lacks"])


def table(records: list[tuple[Organism, dict[str, Any]]]) -> Table:
    """Name, seed, seconds and the rates with their exact intervals."""
    made = Table("organism", "seed", "seconds", *SETS, "sound")
    for _, record in records:
        rates = {row["name"]: row["rate"] for row in record["behaviour"]}
        cells = [
            f"{rates[name]['value']:.0%} [{rates[name]['low']:.0%}, {rates[name]['high']:.0%}]"
            if name in rates
            else "–"
            for name in SETS
        ]
        made.add_row(
            record["name"], str(record["seed"]), f"{record['seconds']:.0f}", *cells, "no" if record["lacks"] else "yes"
        )
    return made


def main() -> None:
    transformers_logging.disable_progress_bar()
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(organisms)
    try:
        code = command(standalone_mode=False)
    except ThresherError as error:
        err.print(f"organisms: {error}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        err.print(f"organisms: {error.format_message()}", markup=False, soft_wrap=True)
        sys.exit(4)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
