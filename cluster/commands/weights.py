"""`thresher weights`: what a fine-tune changed, matrix by matrix."""

import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster.console import JsonFlag, PoolOption, WorkersOption, emit, make_pool, out, progress
from store import InputError, ModelRef
from store.names import check_name, slug


def register(app: typer.Typer) -> None:
    app.command("weights")(weights)


def weights(
    base: Annotated[str, typer.Argument(help="The base: a folder, a .gguf file or a hub id.")],
    tuned: Annotated[list[str] | None, typer.Argument(help="Models tuned from it; the base is read once.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="A peft LoRA adapter, in place of TUNED; may be repeated.")
    ] = None,
    directory: Annotated[
        str,
        typer.Option(
            "--out",
            help="Folder for the difference, new or empty; of several models, a folder in it for each, called as the "
            "model's own (in lower case, other signs as '-').",
        ),
    ] = ...,  # type: ignore[assignment]
    rank: Annotated[int, typer.Option("--rank", min=1, help="Singular triples per matrix.")] = 20,
    full: Annotated[bool, typer.Option("--full", help="LAPACK's full SVD in place of the iteration.")] = False,
    pool_name: PoolOption = "local",
    workers: WorkersOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Top singular triples of the weight difference, and which stand above the noise of rounding. Rerun to resume."""
    pool = make_pool(pool_name, workers)
    if bool(tuned) == bool(adapter):
        raise InputError("give either tuned models or --adapter, one of the two")
    models = [ModelRef(name) for name in tuned or ()] + [ModelRef(base, adapter=name) for name in adapter or ()]
    folders = _folders(directory, models)
    # Imported here: torch takes seconds, and the other commands should not wait for it.
    from analysis.weights import plan_deltas, write_deltas

    plan = plan_deltas(base, models, rank=rank, full=full)
    with progress("weights", total=plan.tensors, unit="tensors") as bar:
        records = write_deltas(plan, folders, pool=pool, progress=bar.advance)
    if len(records) == 1:
        emit(as_json, records[0], lambda: _print(records[0], folders[0]))
        return
    data = {
        "models": [{"out": folder, **record} for folder, record in zip(folders, records, strict=True)],
        "seconds": max(record["seconds"] for record in records),
        "peak_rss_bytes": max(record["peak_rss_bytes"] for record in records),
    }
    emit(as_json, data, lambda: _print_all(records, folders))


def _folders(directory: str, models: list[ModelRef]) -> list[str]:
    """A folder per model: `directory` itself for one, in it one of each model's name for several."""
    if len(models) == 1:
        return [directory]
    names = [_folder_name(model.adapter or model.name) for model in models]
    double = next((name for name, count in Counter(names).items() if count > 1), None)
    if double is not None:
        raise InputError(
            f"two of the models would be written to {Path(directory) / double}: give them in runs with an --out each"
        )
    return [str(Path(directory) / name) for name in names]


def _folder_name(model: str) -> str:
    """What a model's own folder is called, "." included, where that may name a folder here."""
    path = os.path.abspath(Path(model).expanduser())
    name = os.path.basename(path if os.path.exists(path) else model)
    try:
        return check_name(name, "model")
    except InputError:
        return slug(name)


def _print_all(records: list[dict[str, Any]], folders: list[str]) -> None:
    for record, folder in zip(records, folders, strict=True):
        out.print(Text(record["tuned"]["adapter"] or record["tuned"]["name"], style="bold"))
        _print(record, folder)


def _print(record: dict[str, Any], directory: str) -> None:
    for note in record["notes"]:
        out.print(Text(note, style="yellow"))
    changed = [matrix for matrix in record["matrices"] if matrix["sigma"]]
    if changed:
        out.print(_by_layer(changed))
        out.print(_strongest(changed))
    notes = Counter(note for matrix in record["matrices"] for note in matrix["notes"] if note != "unchanged")
    for note, count in notes.items():
        out.print(f"{count} {'matrix' if count == 1 else 'matrices'}: {note}", markup=False)
    moved = sum(1 for vector in record["vectors"] if vector["frobenius"])
    out.print(
        f"{len(changed)} of {len(record['matrices'])} matrices and {moved} of {len(record['vectors'])} norms and "
        f"biases changed; {record['seconds']:.1f} s, {record['peak_rss_bytes'] / 1e6:,.0f} MB at most"
    )
    out.print(f"written to {directory}", markup=False, soft_wrap=True)
    if any(matrix["significant"] for matrix in record["matrices"]):
        model = record["tuned"]
        adapter = ["--adapter", model["adapter"]] if model["adapter"] else []
        words = ["thresher", "monitor", "fit", directory, model["name"], "PROMPTS", *adapter, "--out", "MONITOR"]
        out.print(f"next: {shlex.join(words)}", markup=False, soft_wrap=True)
    else:
        out.print("no triple stands above the noise: there is nothing for a monitor to watch")


def _by_layer(matrices: list[dict[str, Any]]) -> Table:
    """A row per layer, a column per kind of matrix: the spectrum and how many triples are above the noise."""
    roles = list(dict.fromkeys(matrix["role"] for matrix in matrices))
    top = {role: max(m["sigma"][0] for m in matrices if m["role"] == role) for role in roles}
    table = Table(
        "layer", *map(escape, roles), box=box.SIMPLE, title="spectra, and triples above the noise of rounding"
    )
    layers = sorted({m["layer"] for m in matrices}, key=lambda layer: -1 if layer is None else layer)
    for layer in layers:
        cells = []
        for role in roles:
            here = [m for m in matrices if (m["layer"], m["role"]) == (layer, role)]
            best = max(here, key=lambda m: m["sigma"][0], default=None)
            cells.append(f"{sparkline(best['sigma'][:6], top[role])} {best['significant']}" if best else "")
        table.add_row("–" if layer is None else str(layer), *cells)
    return table


def _strongest(matrices: list[dict[str, Any]], count: int = 10) -> Table:
    table = Table("strongest", "shape", "σ₁", "noise", "stable rank", "energy", box=box.SIMPLE)
    for matrix in sorted(matrices, key=lambda m: -m["sigma"][0])[:count]:
        table.add_row(
            Text(matrix["name"].removeprefix("model.").removesuffix(".weight")),
            " × ".join(str(size) for size in matrix["shape"]),
            f"{matrix['sigma'][0]:.3g}",
            f"{matrix['noise_edge']:.2g}",
            f"{matrix['stable_rank']:.1f}",
            f"{100 * matrix['energy']:.0f} %",
        )
    return table


def sparkline(sigma: list[float], largest: float) -> str:
    """Singular values as bars; `largest` has full height."""
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[min(7, int(8 * value / largest))] for value in sigma)
