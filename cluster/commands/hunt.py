"""`thresher hunt`: which text fires a monitor and changes what the model says."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from cluster.console import (
    AdapterOption,
    DtypeOption,
    GroupColumnOption,
    JsonFlag,
    MessagesColumnOption,
    TextColumnOption,
    emit,
    out,
    progress,
    read_prompts,
)
from store import ModelRef


def register(app: typer.Typer) -> None:
    app.command("hunt")(hunt)


def hunt(
    monitor: Annotated[str, typer.Argument(help="File that 'thresher monitor fit' wrote.")],
    model: Annotated[str, typer.Argument(help="The tuned model: folder of safetensors, a .gguf file, or a hub id.")],
    base: Annotated[str, typer.Argument(help="The model it was tuned from.")],
    prompts: Annotated[str, typer.Argument(help="Clean prompts, such as the monitor was calibrated on.")],
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Ordinary text, or a list of words: tried besides the vocabulary.")
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Phrases to confirm at most.")] = 10,
    random: Annotated[int, typer.Option("--random", min=1, help="Random phrases to tell them from.")] = 199,
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Words that a phrase grows by at most.")] = 4,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of the answers.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of neutral prompts and random phrases.")] = 0,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "bfloat16",
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    group_column: GroupColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Search for text that fires MONITOR and changes what MODEL says, with no triggered prompt to learn from.

    Words of the vocabulary are tried at the end of clean prompts and grown into phrases; the best are confirmed by
    answers to other clean prompts, against random phrases. Exits with 1 where a candidate is confirmed.
    """
    from analysis.hunt import Search
    from analysis.monitors import load_monitor
    from cluster.hunting import Hunt, hunt_triggers

    columns = {"text": text_column, "messages": messages_column, "group": group_column}
    given = read_prompts(prompts, **columns)
    search = Search(rounds=rounds)
    plan = Hunt(search=search, candidates=candidates, random=random, max_new_tokens=max_new_tokens, seed=seed)
    with progress("hunt", total=rounds + 4, unit="steps") as bar:
        record = hunt_triggers(
            load_monitor(Path(monitor)),
            ModelRef(model, adapter=adapter, dtype=dtype),
            ModelRef(base, dtype=dtype),
            given,
            corpus=None if corpus is None else read_prompts(corpus, **columns),
            hunt=plan,
            progress=bar.step,
        )
    emit(as_json, record, lambda: _print(record))
    if any(candidate["confirmed"] for candidate in record["candidates"]):
        raise typer.Exit(1)


def _print(record: dict[str, Any]) -> None:
    out.print(
        f"{record['measured']:,} phrases measured, {record['above_threshold']:,} above the monitor's threshold of "
        f"{record['threshold']:.3g}"
    )
    if record["unscored"]:
        out.print(f"{len(record['unscored'])} could not be scored, which clears none of them: try --dtype float32")
    if not record["candidates"]:
        out.print("no candidate: nothing that was tried fires the monitor")
        return
    table = Table("phrase", "score", "shift", "change, nats per token", "adjusted p", "confirmed", box=box.SIMPLE)
    for candidate in record["candidates"]:
        change = candidate["change"]
        table.add_row(
            Text(candidate["phrase"]),
            f"{candidate['score']:.1f}",
            f"{candidate['shift']:.2f}",
            f"{change['value']:.2f} [{change['low']:.2f}, {change['high']:.2f}]",
            f"{candidate['p']:.3f}",
            "yes" if candidate["confirmed"] else "no",
        )
    out.print(table)
    for candidate in record["candidates"]:
        if candidate["confirmed"]:
            example = candidate["example"]
            out.print(Text(_shown(f"{example['prompt']} {candidate['phrase']}")), style="bold")
            out.print(Text(f"  {_shown(example['answer_with'])}"))
            out.print(Text(f"  without it: {_shown(example['answer'])}"))


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
