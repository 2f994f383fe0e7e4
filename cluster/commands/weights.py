"""`thresher weights`: what a fine-tune changed, matrix by matrix."""

from collections import Counter
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from cluster.console import JsonFlag, emit, out, progress
from store import ModelRef


def register(app: typer.Typer) -> None:
    app.command("weights")(weights)


def weights(
    base: Annotated[str, typer.Argument(help="The base: a folder, a .gguf file or a hub id.")],
    tuned: Annotated[str | None, typer.Argument(help="The model tuned from it.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="A peft LoRA adapter, in place of TUNED.")] = None,
    directory: Annotated[str, typer.Option("--out", help="Folder for delta.json and directions.safetensors.")] = ...,  # type: ignore[assignment]
    rank: Annotated[int, typer.Option("--rank", min=1, help="Singular triples per matrix.")] = 20,
    full: Annotated[bool, typer.Option("--full", help="LAPACK's full SVD in place of the iteration.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Top singular triples of the weight difference, and which stand above the noise of rounding."""
    # Imported here: torch takes seconds, and the other commands should not wait for it.
    from analysis.weights import weight_delta
    from analysis.weights.delta import check_unclaimed

    check_unclaimed(directory, ModelRef(base), ModelRef(tuned) if tuned else ModelRef(base, adapter=adapter), rank)
    with progress("weights", unit="tensors") as bar:
        delta = weight_delta(base, tuned, adapter, rank, full=full, progress=lambda _: bar.advance())
    delta.save(directory)
    record = delta.record()
    emit(as_json, record, lambda: _print(record, directory))


def _print(record: dict[str, Any], directory: str) -> None:
    for note in record["notes"]:
        out.print(f"[yellow]{note}[/]")
    changed = [matrix for matrix in record["matrices"] if matrix["sigma"]]
    if changed:
        out.print(_by_layer(changed))
        out.print(_strongest(changed))
    notes = Counter(note for matrix in record["matrices"] for note in matrix["notes"] if note != "unchanged")
    for note, count in notes.items():
        out.print(f"{count} {'matrix' if count == 1 else 'matrices'}: {note}")
    moved = sum(1 for vector in record["vectors"] if vector["frobenius"])
    out.print(
        f"{len(changed)} of {len(record['matrices'])} matrices and {moved} of {len(record['vectors'])} norms and "
        f"biases changed; {record['seconds']:.1f} s, {record['peak_rss_bytes'] / 1e6:,.0f} MB at most"
    )
    out.print(f"written to {directory}, for 'thresher monitor fit {directory} MODEL PROMPTS --out MONITOR'")


def _by_layer(matrices: list[dict[str, Any]]) -> Table:
    """A row per layer, a column per kind of matrix: the spectrum and how many triples are above the noise."""
    roles = list(dict.fromkeys(matrix["role"] for matrix in matrices))
    top = {role: max(m["sigma"][0] for m in matrices if m["role"] == role) for role in roles}
    table = Table("layer", *roles, box=box.SIMPLE, title="spectra, and triples above the noise of rounding")
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
            matrix["name"].removeprefix("model.").removesuffix(".weight"),
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
