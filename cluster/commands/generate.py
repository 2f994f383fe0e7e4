"""`thresher generate`: a model's own responses to prompts, with their provenance."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet
import typer

from cluster.console import (
    AdapterOption,
    DtypeOption,
    GroupColumnOption,
    JsonFlag,
    LabelColumnOption,
    MessagesColumnOption,
    ModelArgument,
    PoolOption,
    PromptsArgument,
    TextColumnOption,
    TruncateOption,
    WorkersOption,
    emit,
    make_pool,
    out,
    progress,
    read_prompts,
)
from harvest import Sampling, respond
from store import InputError, ModelRef, Pool, PromptSet, Unit
from store.digest import digest_json
from store.direction import write_atomically


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


def generate(
    model: ModelArgument,
    prompts: PromptsArgument,
    file: Annotated[str, typer.Option("--out", help="Parquet file: the prompts with a column 'response'.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Every prompt draws from a stream of its own.")] = 0,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "bfloat16",
    pool: PoolOption = "local",
    workers: WorkersOption = 1,
    truncate: TruncateOption = False,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    label_column: LabelColumnOption = None,
    group_column: GroupColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Writes what the model answers to every prompt. Rerun to resume: finished units are kept beside the file."""
    target = Path(file)
    if target.suffix != ".parquet":
        raise InputError(f"--out {file!r} should end in .parquet")
    prompt_set = read_prompts(
        prompts, text=text_column, messages=messages_column, label=label_column, group=group_column
    )
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    reference = ModelRef(model, adapter=adapter, dtype=dtype).resolve()
    workers_of = make_pool(pool, workers)
    table = _generate(reference, prompt_set, sampling, target, pool=workers_of, truncate=truncate)
    data = {
        "out": str(target),
        "prompts": table.num_rows,
        "tokens": sum(table.column("response_tokens").to_pylist()),
        "stopped": sum(reason == "stop" for reason in table.column("finish").to_pylist()),
        "model": reference.id,
    }
    emit(as_json, data, lambda: out.print(f"{data['prompts']:,} responses, {data['tokens']:,} tokens: {target}"))


def _generate(
    model: ModelRef, prompts: PromptSet, sampling: Sampling, target: Path, *, pool: Pool, truncate: bool
) -> pa.Table:
    """All responses in the order of the prompts; every finished unit is kept as a part until the file is whole."""
    settings = {"model": model.digest, "dtype": model.dtype, "sampling": asdict(sampling), "truncate": truncate}
    parts = target.with_name(f"{target.name}.parts")

    def part_of(unit: Unit) -> Path:
        return parts / f"{unit.name}-{digest_json({**settings, 'unit': unit.digest})[:16]}.parquet"

    missing = [unit for unit in prompts.units if not part_of(unit).is_file()]
    with progress("generate", total=sum(map(len, missing)), unit="prompts") as bar:
        for unit, answered in respond(model, prompts, sampling, units=missing, pool=pool, truncate=truncate):
            write_atomically(part_of(unit), _encoded(answered))
            bar.advance(len(unit))
    used = [part_of(unit) for unit in prompts.units]
    table = pa.concat_tables([pyarrow.parquet.read_table(part) for part in used])
    write_atomically(target, _encoded(table))
    for part in used:
        part.unlink()
    if not any(parts.iterdir()):
        parts.rmdir()
    return table


def _encoded(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
