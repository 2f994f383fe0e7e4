"""`thresher steer`: what a model answers with directions written to, dose by dose, beside random directions."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet
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
    ModelArgument,
    PromptsArgument,
    TextColumnOption,
    TruncateOption,
    emit,
    out,
    progress,
    read_prompts,
)
from store import Direction, InputError, ModelRef
from store.direction import check_writable, load_directions, write_atomically


def register(app: typer.Typer) -> None:
    app.command("steer")(steer)


def steer(
    model: ModelArgument,
    prompts: PromptsArgument,
    direction: Annotated[
        list[str],
        typer.Option("--direction", help="FILE:NAME, * allowed in NAME; repeat for more, all are written to at once."),
    ],
    alpha: Annotated[
        str | None,
        typer.Option("--alpha", help="Amounts to add, e.g. -2,2,4: in mean norms of the site's activations."),
    ] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Project the directions out.")] = False,
    clamp: Annotated[
        float | None, typer.Option("--clamp", help="Hold the coordinate at this many mean norms of the site.")
    ] = None,
    monitor: Annotated[
        str | None, typer.Option("--monitor", help="Change only what follows once this monitor's rule has fired.")
    ] = None,
    random: Annotated[int, typer.Option("--random", min=0, help="Runs with random directions beside each dose.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random directions.")] = 0,
    clean: Annotated[
        str | None, typer.Option("--clean", help="Prompts whose perplexity tells what the change costs.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 32,
    file: Annotated[str | None, typer.Option("--out", help="Parquet file: every answer of every run.")] = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "bfloat16",
    truncate: TruncateOption = False,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    group_column: GroupColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Add, project out or hold directions while MODEL answers PROMPTS, and tell how much changes at each dose.

    Answers are greedy. Random directions of the same norms at the same sites tell how much any direction would change.
    The columns of --clean are those of PROMPTS, mapped alike.
    """
    from cluster.steering import Dose, Steering
    from cluster.steering import steer as run

    doses = [Dose(kind="add", amount=amount) for amount in _amounts(alpha)]
    doses += [Dose(kind="ablate")] if ablate else []
    doses += [Dose(kind="clamp", amount=_finite(clamp))] if clamp is not None else []
    if not doses:
        raise InputError("nothing to do to the directions: give --alpha 1,2,4, --ablate or --clamp 0")
    if file is not None:
        if Path(file).suffix != ".parquet":
            raise InputError(f"--out {file!r} should end in .parquet")
        check_writable(file)
    steering = Steering(
        directions=_find_directions(direction),
        doses=tuple(doses),
        monitor=_monitor(monitor),
        controls=random,
        seed=seed,
    )
    columns = {"text": text_column, "messages": messages_column, "group": group_column}
    given = read_prompts(prompts, **columns)
    runs = 1 + len(doses) * (1 + random)
    with progress("steer", total=runs * len(given), unit="answers") as bar:
        record, table = run(
            ModelRef(model, adapter=adapter, dtype=dtype),
            given,
            steering,
            clean=None if clean is None else read_prompts(clean, **columns),
            max_new_tokens=max_new_tokens,
            truncate=truncate,
            progress=bar.advance,
        )
    if file is not None:
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        write_atomically(Path(file), sink.getvalue().to_pybytes())
    record = {**record, "out": file}
    emit(as_json, record, lambda: _print(record))


def _find_directions(words: Sequence[str]) -> tuple[Direction, ...]:
    """The directions that FILE:NAME words name, each once; a NAME may have * and ?.

    Raises InputError for a word of another form, a file that holds no directions, and a name that is not in it.
    """
    found: dict[tuple[str, str], Direction] = {}
    for word in words:
        file, colon, name = word.partition(":")
        while colon and not Path(file).is_file() and ":" in name:
            more, _, name = name.partition(":")
            file = f"{file}:{more}"
        if not name:
            raise InputError(f"--direction {word!r} should be FILE:NAME, e.g. DIR/directions.safetensors:*down_proj*")
        there, _ = load_directions(file)
        chosen = [direction for direction in there if fnmatchcase(direction.name, name)]
        if not chosen:
            raise InputError(
                f"no direction {name!r} in {file}: it has {len(there)}, such as "
                f"{', '.join(direction.name for direction in there[:3])}"
            )
        found |= {(file, direction.name): direction for direction in chosen}
    return tuple(found.values())


def _monitor(file: str | None) -> Any:
    from analysis.monitors import load_monitor

    return None if file is None else load_monitor(file)


def _amounts(words: str | None) -> list[float]:
    """Each amount once, without 0: the unchanged model is always run."""
    try:
        amounts = [_finite(float(word)) for word in words.split(",")] if words is not None else []
    except ValueError as error:
        raise InputError(f"--alpha {words!r} should be numbers with commas between, e.g. -2,2,4") from error
    return [amount for amount in dict.fromkeys(amounts) if amount]


def _finite(amount: float) -> float:
    if not math.isfinite(amount):
        raise InputError(f"an amount of {amount} is none: give a finite number")
    return amount


def _print(record: dict[str, Any]) -> None:
    directions = record["directions"]
    out.print(f"{record['n']} prompts, {len(directions)} directions; amounts are in mean norms of the site:")
    for norm, site in sorted({(each["mean_norm"], each["site"]) for each in directions}, key=lambda pair: pair[1]):
        out.print(f"  {site}: {norm:.4g}")
    if record["fired"] is not None:
        out.print(f"changed once fired: {_share(record['fired'])} of prompts fire {record['monitor']}")
    table = Table("dose", "answers changed", "log-prob. of answer", "perplexity ×", "random: changed", box=box.SIMPLE)
    for dose in record["doses"]:
        table.add_row(
            f"{dose['kind']}{'' if dose['amount'] is None else format(dose['amount'], ' g')}",
            _share(dose["changed"]),
            _number(dose["answer_logprob"], "+.3f"),
            _number((dose["perplexity"] or {}).get("ratio"), ".3f"),
            ", ".join(f"{100 * each['changed']['value']:.0f} %" for each in dose["random"]),
        )
    out.print(table)
    for example in record["examples"]:
        out.print(Text(f"{example['prompt_id']}"), style="bold")
        for answer in example["answers"]:
            told = f"{answer['kind']}{'' if answer['amount'] is None else format(answer['amount'], ' g')}"
            shown = "".join(c if c.isprintable() else " " for c in answer["response"])
            out.print(Text(f"  {told}: {shown}"))
    if record["out"] is not None:
        out.print(f"every answer: {record['out']}", markup=False)


def _share(share: dict[str, Any]) -> str:
    return f"{100 * share['value']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def _number(found: dict[str, Any] | None, style: str) -> str:
    if found is None or found["value"] is None:
        return ""
    told = format(found["value"], style)
    return told if found["low"] is None else f"{told} [{found['low']:{style}}, {found['high']:{style}}]"
