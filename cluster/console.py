"""How the command line speaks: results on stdout, everything else on stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from store import InputError, Pool, PromptSet, SerialPool

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ModelArgument = Annotated[str, typer.Argument(help="Folder of safetensors, a .gguf file, or a hub id.")]
PromptsArgument = Annotated[str, typer.Argument(help="JSONL, JSON array, CSV, Parquet or a saved dataset.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
TextColumnOption = Annotated[str | None, typer.Option("--text-column", help="Column that holds the text.")]
TruncateOption = Annotated[bool, typer.Option("--truncate", help="Cut prompts longer than the model's context.")]
MessagesColumnOption = Annotated[str | None, typer.Option("--messages-column", help="Column of chat messages.")]
LabelColumnOption = Annotated[str | None, typer.Option("--label-column", help="Column that becomes 'label'.")]
GroupColumnOption = Annotated[str | None, typer.Option("--group-column", help="Column that becomes 'group'.")]
DomainColumnOption = Annotated[
    str | None, typer.Option("--domain-column", help="Column whose values have a rate each.")
]
ResponseColumnOption = Annotated[str | None, typer.Option("--response-column", help="Column of responses.")]
PoolOption = Annotated[str, typer.Option("--pool", help="local, ray (starts one here) or ray://HOST:PORT.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Workers of a Ray pool; each holds the model.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Compute dtype: bfloat16, float16 or float32.")]
AdapterOption = Annotated[str | None, typer.Option("--adapter", help="Folder of a peft adapter.")]


def emit(as_json: bool, data: dict[str, Any], human: Callable[[], None]) -> None:
    """The result: `data` as one JSON object on stdout, or `human`'s rendering of it."""
    if as_json:
        sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        human()


def read_prompts(
    path: str,
    *,
    text: str | None = None,
    messages: str | None = None,
    label: str | None = None,
    group: str | None = None,
    response: str | None = None,
) -> PromptSet:
    """The prompt set of a file, columns mapped as the options of a command say."""
    return PromptSet.read(Path(path), text=text, messages=messages, label=label, group=group, response=response)


def make_pool(name: str, workers: int) -> Pool:
    """The pool that `--pool` names. Raises InputError for a word that is none."""
    if name == "local":
        if workers != 1:
            raise InputError("--workers goes with a Ray pool: add --pool ray, or leave --workers out")
        return SerialPool()
    if name == "ray" or name.startswith("ray://"):
        # Imported here: ray takes a second to import and most commands do not need it.
        from cluster.ray_pool import RayPool

        return RayPool(workers=workers, address=None if name == "ray" else name)
    raise InputError(f"unknown pool {name!r}: use local, ray or ray://HOST:PORT")


@dataclass
class Bar:
    """A progress display. `advance` may be called from any thread that owns it, as often as it likes."""

    label: str
    total: int | None
    unit: str
    display: Progress | None = None
    task: TaskID | None = None
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)

    def advance(self, amount: int = 1, *, tokens: int | None = None) -> None:
        """`amount` more units are done; `tokens` in all, where the rate is better told in tokens."""
        self.done += amount
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / seconds
        told = f"{rate:,.0f} {self.unit}/s" if tokens is None else f"{tokens / seconds:,.0f} tokens/s"
        if self.display is not None and self.task is not None:
            self.display.update(self.task, advance=amount, rate=told)
        elif time.monotonic() - self.spoken >= 10:
            self.spoken = time.monotonic()
            left = "" if not self.total or not rate else f", {(self.total - self.done) / rate:,.0f} s left"
            of = f" of {self.total:,}" if self.total else ""
            err.print(f"{self.label}: {self.done:,}{of} {self.unit}, {told}{left}")

    def step(self, what: str) -> None:
        """Of a few long steps the next one begins: `what` is done in it."""
        if self.display is not None and self.task is not None:
            self.display.update(self.task, advance=1 if self.done else 0, description=f"{self.label}: {what}")
        else:
            err.print(f"{self.label}: {what}")
        self.done += 1


@contextmanager
def progress(label: str, *, total: int | None = None, unit: str = "items") -> Iterator[Bar]:
    """A bar with rate and time left on a terminal's stderr; elsewhere a line every ten seconds."""
    if not err.is_terminal:
        yield Bar(label, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as display:
        yield Bar(label, total, unit, display, display.add_task(label, total=total, rate=""))
