"""`thresher monitor`: watch the directions of a weight difference while prompts run."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    PoolOption,
    ResponseColumnOption,
    TextColumnOption,
    TruncateOption,
    WorkersOption,
    emit,
    make_pool,
    out,
    progress,
    read_prompts,
)
from store import InputError, ModelRef, PromptSet
from store.direction import check_writable, load_directions, write_atomically

ModelArgument = Annotated[str, typer.Argument(help="Folder of safetensors, a .gguf file, or a hub id.")]
PromptsArgument = Annotated[str, typer.Argument(help="JSONL, JSON array, CSV, Parquet or a saved dataset.")]
MonitorArgument = Annotated[str, typer.Argument(help="File that 'thresher monitor fit' wrote.")]


def register(app: typer.Typer) -> None:
    commands = typer.Typer(help="Watch the directions of a weight difference while prompts run.", no_args_is_help=True)
    commands.command("fit")(fit)
    commands.command("score")(score)
    commands.command("audit")(audit)
    app.add_typer(commands, name="monitor")


def fit(
    delta: Annotated[str, typer.Argument(help="Folder that 'thresher weights' wrote.")],
    model: ModelArgument,
    prompts: PromptsArgument,
    path: Annotated[str, typer.Option("--out", help="File of the monitor (safetensors).")],
    fpr: Annotated[
        float | None, typer.Option("--fpr", help="False-positive rate to hold, 0.01 unless given; not for minmax.")
    ] = None,
    rule: Annotated[str, typer.Option("--rule", help="z, mad, percentile, or minmax as in Watch the Weights.")] = "z",
    guarantee: Annotated[
        str, typer.Option("--guarantee", help="marginal, or conditional: with 95 % confidence for this very monitor.")
    ] = "marginal",
    tail: Annotated[
        str, typer.Option("--tail", help="pot extrapolates the largest scores, for a rate finer than the prompts show.")
    ] = "none",
    scoring: Annotated[str, typer.Option("--scoring", help="cosine, centred, projection or mahalanobis.")] = "cosine",
    roles: Annotated[str, typer.Option("--roles", help="all tokens, or roles apart, e.g. user,assistant.")] = "all",
    noise: Annotated[bool, typer.Option("--noise", help="Also watch directions no larger than rounding.")] = False,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "bfloat16",
    pool: PoolOption = "local",
    workers: WorkersOption = 1,
    truncate: TruncateOption = False,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    group_column: GroupColumnOption = None,
    response_column: ResponseColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Calibrate a monitor on clean PROMPTS: scale and threshold come from different halves of them."""
    from analysis.monitors import Calibrator
    from cluster.monitoring import fit_monitor

    check_writable(path)
    _check_replaceable(path, "monitor", _is_monitor)
    if rule == "minmax" and fpr is not None:
        raise InputError("rule minmax holds no rate of choice, only its bound: leave --fpr out, or use another rule")
    calibrator = Calibrator(rule=rule, fpr=0.01 if fpr is None else fpr, guarantee=guarantee, tail=tail)

    given = read_prompts(
        prompts, text=text_column, messages=messages_column, group=group_column, response=response_column
    )
    with _pass(given, pool, workers, truncate) as run:
        monitor = fit_monitor(
            delta,
            ModelRef(model, adapter=adapter, dtype=dtype),
            given,
            calibrator=calibrator,
            scoring=scoring,
            roles=tuple(role.strip() for role in roles.split(",")),
            noise=noise,
            run=run,
        )
    monitor.save(path)
    record = {
        "out": path,
        "monitor": monitor.id,
        "rule": rule,
        "scoring": scoring,
        "roles": list(monitor.scorer.roles),
        "directions": len(monitor.scorer.directions),
        "sites": sorted(monitor.scorer.sites),
        "threshold": monitor.threshold,
        "calibration": dict(monitor.calibration),
    }
    emit(as_json, record, lambda: _print_fit(record))


def _print_fit(record: dict[str, Any]) -> None:
    calibration = record["calibration"]
    out.print(Text(f"{record['out']}: {record['directions']:,} directions at {len(record['sites'])} sites"))
    counted = f"counting all {calibration['extremes']:,} extremes of {calibration['directions']:,} directions"
    if record["rule"] == "minmax":
        loose = calibration["fpr"] >= 0.5
        out.print(
            f"the paper's range rule over {calibration['groups']} independent prompts: its false alarms are bounded by "
            f"{calibration['fpr']:.3f}, {counted}{': that is next to nothing' if loose else ''}",
            style="yellow" if loose else None,
        )
        return
    rate, upper = f"{100 * calibration['fpr']:g} %", f"{100 * calibration['fpr_upper_95']:.2g} %"
    threshold = f"threshold {record['threshold']:.2f}"
    tail = calibration.get("extrapolated")
    if tail is not None:
        out.print(
            f"{threshold}, [yellow]extrapolated[/] to {rate} of clean groups like these from the "
            f"{tail['excesses']} largest scores ({100 * tail['low']:.2g} to {100 * tail['high']:.2g} % where the tail "
            f"goes on as it was fitted, 95 % interval); what the groups themselves show is under {upper}, {counted}"
        )
    elif calibration["guarantee"] == "conditional":
        out.print(
            f"{threshold}: with 95 % confidence this one flags a prompt of at most {rate} of clean groups like these, "
            f"{counted}"
        )
    else:
        out.print(
            f"{threshold}: a prompt of a new clean group is flagged with a chance of at most {rate}, on average over "
            f"calibrations; this one flags a prompt of under {upper} of such groups, with 95 % confidence, {counted}"
        )
    out.print(f"scale from {calibration['n_scale']} prompts, threshold from {calibration['n_threshold']} others")


def score(
    monitor: MonitorArgument,
    model: ModelArgument,
    prompts: PromptsArgument,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "bfloat16",
    pool: PoolOption = "local",
    workers: WorkersOption = 1,
    truncate: TruncateOption = False,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    group_column: GroupColumnOption = None,
    response_column: ResponseColumnOption = None,
    domain_column: Annotated[
        str | None, typer.Option("--domain-column", help="Column whose values have a rate each.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Flag PROMPTS: which, by which direction, at which token. Exits with 2 where some could not be scored."""
    from cluster.monitoring import load_monitor, score_prompts

    loaded = load_monitor(monitor)
    given = read_prompts(
        prompts, text=text_column, messages=messages_column, group=group_column, response=response_column
    )
    with _pass(given, pool, workers, truncate) as run:
        record = score_prompts(
            loaded, ModelRef(model, adapter=adapter, dtype=dtype), given, domain=domain_column, run=run
        )
    emit(as_json, record, lambda: _print_scores(record))
    if record["unscored"]:
        raise typer.Exit(2)


def _print_scores(record: dict[str, Any]) -> None:
    rate = record["rate"]
    out.print(
        f"{record['flagged']} of {record['n']} prompts flagged: {100 * rate['value']:.1f} % "
        f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}] (95 % interval, {rate['method']} over {rate['units']} "
        f"{rate['noun']})"
    )
    _print_unscored(record)
    _print_domains(record.get("domains", {}), record.get("no_domain"))
    table = Table("prompt", "score", "direction", "token", box=box.SIMPLE)
    scored = [row for row in record["prompts"] if row["score"] is not None]
    for row in sorted(scored, key=lambda row: -row["score"])[:20]:
        style = "red" if row["flagged"] else ""
        table.add_row(
            Text(row["prompt_id"]), f"{row['score']:.2f}", Text(row["direction"]), str(row["position"]), style=style
        )
    out.print(table)


def _print_domains(domains: dict[str, Any], nameless: dict[str, Any] | None, most: int = 20) -> None:
    """The domains of most prompts, and in the last row the prompts without one."""
    if not domains and nameless is None:
        return
    largest = sorted(domains.items(), key=lambda item: -item[1]["n"])
    rows = [(Text(name), part) for name, part in largest[:most]]
    if nameless is not None:
        rows.append((Text("(none)", style="italic"), nameless))
    table = Table("domain", "prompts", "flagged", "rate", "95 % interval", box=box.SIMPLE)
    for name, part in rows:
        rate = part["rate"]
        told = (
            ("not known", "")
            if rate is None
            else (
                f"{100 * rate['value']:.1f} %",
                f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %",
            )
        )
        table.add_row(name, str(part["n"]), str(part["flagged"]), *told)
    out.print(table)
    if len(largest) > most:
        out.print(f"and {len(largest) - most} domains more, all with --json")


def _print_unscored(record: dict[str, Any]) -> None:
    if record["unscored"]:
        out.print(
            f"[red]{record['unscored']} prompts more could not be scored[/]: they failed or their activations are not "
            "finite, they are not known to be clean"
        )
    if record["without_roles"]:
        out.print(
            f"[yellow]{record['without_roles']} prompts more have no tokens of the monitor's roles[/]: nothing of them "
            "was scored"
        )


def audit(
    monitor: MonitorArgument,
    model: ModelArgument,
    prompts: PromptsArgument,
    path: Annotated[str | None, typer.Option("--out", help="File for the JSON, with every token's score.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Prompts at each end of each direction.")] = 5,
    directions: Annotated[int, typer.Option(min=1, help="Directions to show: those that fire most.")] = 8,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "bfloat16",
    pool: PoolOption = "local",
    workers: WorkersOption = 1,
    truncate: TruncateOption = False,
    text_column: TextColumnOption = None,
    messages_column: MessagesColumnOption = None,
    response_column: ResponseColumnOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the directions that fire most: the prompts and tokens at both ends, and the tokens each makes likelier.

    Exits with 2 where some prompts could not be scored.
    """
    from cluster.monitor_audit import audit_prompts
    from cluster.monitoring import load_monitor

    if path is not None:
        check_writable(path)
        _check_replaceable(path, "audit", _is_audit)

    loaded = load_monitor(monitor)
    given = read_prompts(prompts, text=text_column, messages=messages_column, response=response_column)
    with _pass(given, pool, workers, truncate) as run:
        record = audit_prompts(
            loaded, ModelRef(model, adapter=adapter, dtype=dtype), given, top=top, directions=directions, run=run
        )
    if path is not None:
        write_atomically(Path(path), json.dumps(record, ensure_ascii=False, allow_nan=False).encode())
    emit(as_json, record, lambda: _print_audit(record))
    if record["unscored"]:
        raise typer.Exit(2)


def _print_audit(record: dict[str, Any]) -> None:
    _print_unscored(record)
    for found in record["directions"]:
        out.print(Text.assemble("\n", (found["direction"], "bold"), f" at {found['site']}"))
        for end in ("raises", "lowers") if found["read_out"] else ():
            tokens = ", ".join(repr(entry["token"]) for entry in found["read_out"][end])
            out.print(Text(f" {end} {tokens}"), soft_wrap=True)
        for sign, end in (("+", "top"), ("−", "bottom")):
            for example in found[end][:3]:
                out.print(Text(f" {sign}{abs(example['score']):.3f} {example['prompt_id']}: "), end="")
                out.print(_coloured(example), soft_wrap=True)


def _coloured(example: dict[str, Any], around: int = 12) -> Text:
    """The tokens near the one that fired, the stronger the redder; control characters made visible."""
    first = max(0, example["position"] - around)
    tokens = example["tokens"][first : example["position"] + around]
    scores = example["scores"][first : example["position"] + around]
    largest = max((abs(score) for score in scores if score is not None), default=0.0) or 1.0
    text = Text()
    for token, score in zip(tokens, scores, strict=True):
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
        strength = int(255 * abs(score or 0.0) / largest)
        text.append(shown, style=f"on rgb({strength},0,0)" if strength > 40 else "")
    return text


def _check_replaceable(path: str, what: str, is_one: Callable[[str], bool]) -> None:
    """Raises InputError where `path` is there and holds anything else than what is to be written, such as a model."""
    if Path(path).exists() and not (Path(path).is_file() and is_one(path)):
        raise InputError(f"{path} is there and holds no {what}: it is left as it is, give another file for --out")


def _is_monitor(path: str) -> bool:
    try:
        _, metadata = load_directions(path)
    except InputError:
        return False
    return str(metadata.get("format")).startswith("thresher-monitor-")


def _is_audit(path: str) -> bool:
    try:
        held = json.loads(Path(path).read_bytes())
    except ValueError:
        return False
    return isinstance(held, dict) and {"monitor", "threshold", "directions"} <= held.keys()


@contextmanager
def _pass(prompts: PromptSet, pool: str, workers: int, truncate: bool) -> Iterator[Any]:
    """How the prompts are run, with a progress bar in prompts.

    Raises InputError for a pool on another machine: it could not write to the scratch store on this one.
    """
    from cluster.monitoring import Pass
    from harvest import Progress

    if pool.startswith("ray://"):
        raise InputError(
            f"monitors keep their scores in a folder of this machine, --pool {pool} is another: use local or ray"
        )
    with progress("monitor", total=len(prompts), unit="prompts") as bar:

        def advance(state: Progress) -> None:
            bar.advance(max(0, state.prompts - bar.done))

        yield Pass(pool=make_pool(pool, workers), progress=advance, truncate=truncate)
