"""thresher probe fit | eval | transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from analysis.probes.evaluate import Evaluation, Transfer, evaluate_probe, transfer_between, transfer_probes
from analysis.probes.fit import ProbeFit, SiteResult, fit_probe
from analysis.probes.probe import load_probe
from analysis.probes.reading import find_model, find_sites
from analysis.statistics.interval import Interval
from analysis.statistics.operating_point import OperatingPoint
from cluster.console import JsonFlag, emit, out, progress
from store.direction import check_writable
from store.errors import InputError
from store.store import Store

probe = typer.Typer(no_args_is_help=True, help="Fit, evaluate and transfer probes on harvested activations.")

MOST_COLUMNS = 3

SiteOption = Annotated[str, typer.Option("--site", help="all, a site, a pattern (resid_post.*) or a list of them.")]
KindOption = Annotated[str, typer.Option("--kind", help="logistic, lda or mass-mean.")]
GroupOption = Annotated[str, typer.Option("--group", help="Column whose values may not be split over folds.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model id, where the store holds several.")]
WhereOption = Annotated[list[str] | None, typer.Option("--where", help="COLUMN=VALUE that prompts must have.")]
FprOption = Annotated[list[float] | None, typer.Option("--fpr", help="False-positive rate to give recall at.")]
FoldsOption = Annotated[int, typer.Option("--folds", min=3, help="Folds over groups.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of folds, resamples and shuffles.")]


def register(app: typer.Typer) -> None:
    app.add_typer(probe, name="probe")


@probe.command()
def fit(
    store: Annotated[str, typer.Argument(help="Store with activations and labelled prompts.")],
    label: Annotated[str, typer.Option("--label", help="Column with two values.")] = "label",
    out_path: Annotated[str | None, typer.Option("--out", help="File for the fitted probe (safetensors).")] = None,
    site: SiteOption = "all",
    kind: KindOption = "logistic",
    group: GroupOption = "group",
    model: ModelOption = None,
    where: WhereOption = None,
    fpr: FprOption = None,
    folds: FoldsOption = 5,
    permutations: Annotated[int, typer.Option("--permutations", min=0, help="Shuffles for adjusted p.")] = 199,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Fits a probe for a label; the site is chosen on inner folds, the figures are for groups left out."""
    if out_path is not None:
        check_writable(out_path)
    opened = Store.open(store)
    reference = find_model(opened, model)
    sites = find_sites(opened, reference, site)
    with progress("probe fit", total=len(sites), unit="sites") as bar:
        fitted = fit_probe(
            opened,
            reference,
            label=label,
            site=site,
            kind=kind,
            group=group,
            folds=folds,
            where=conditions(where),
            fprs=tuple(fpr or [0.01]),
            permutations=permutations,
            seed=seed,
            progress=bar.advance,
        )
    if out_path is not None:
        fitted.save(out_path)
    record = {**fitted.record(), "model": reference.id, "label": label, "probe": out_path}
    emit(as_json, record, lambda: _show_fit(fitted, out_path))


@probe.command(name="eval")
def evaluate(
    probe_path: Annotated[str, typer.Argument(metavar="PROBE", help="File that 'probe fit' wrote.")],
    store: Annotated[str, typer.Argument(help="Store with activations of the same model at the same site.")],
    label: Annotated[str | None, typer.Option("--label", help="Column with two values; the probe's own.")] = None,
    group: GroupOption = "group",
    model: ModelOption = None,
    where: WhereOption = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Measures a fitted probe on groups that it was not trained on, at its own threshold."""
    found = evaluate_probe(
        load_probe(probe_path),
        Store.open(store),
        model,
        label=label,
        group=group,
        where=conditions(where),
        seed=seed,
    )
    emit(as_json, found.record(), lambda: _show_evaluation(found))


@probe.command()
def transfer(
    inputs: Annotated[list[str], typer.Argument(metavar="[PROBES]… STORES…", help="Probe files and stores.")],
    by: Annotated[str | None, typer.Option("--by", help="Column that tells kinds of prompt apart.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column with two values.")] = None,
    site: SiteOption = "all",
    kind: KindOption = "logistic",
    group: GroupOption = "group",
    model: ModelOption = None,
    where: WhereOption = None,
    folds: FoldsOption = 5,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Probes of one kind of prompt on the others: fitted probes on stores, or --by COLUMN within one store."""
    stores = [path for path in inputs if Path(path).is_dir() or "://" in path]
    probes = [path for path in inputs if path not in stores]
    if not stores:
        raise InputError("transfer needs a store: give one after the probes, or a store and --by COLUMN")
    if probes:
        loaded = {_short(path, probes): load_probe(path) for path in probes}
        sets: list[tuple[str, Store, dict[str, str]]] = []
        for path in stores:
            sets.extend(_kinds(Store.open(path), _short(path, stores), by, conditions(where)))
        cells = transfer_probes(loaded, sets, label=label, group=group, seed=seed)
    else:
        if by is None or len(stores) > 1:
            raise InputError("without probes, give one store and --by COLUMN: a probe is fitted for each value")
        opened = Store.open(stores[0])
        reference = find_model(opened, model)
        values = len(set(opened.prompts.labels(by).tolist()))
        steps = values * len(find_sites(opened, reference, site))
        with progress("probe transfer", total=steps, unit="fits") as bar:
            cells = transfer_between(
                opened,
                reference,
                by=by,
                label=label or "label",
                site=site,
                kind=kind,
                group=group,
                folds=folds,
                where=conditions(where),
                seed=seed,
                progress=bar.advance,
            )
    emit(as_json, {"cells": [cell.record() for cell in cells]}, lambda: _show_transfer(cells))


def conditions(where: list[str] | None) -> dict[str, str]:
    """COLUMN=VALUE options as a mapping. Raises InputError for anything else."""
    for entry in where or []:
        if "=" not in entry:
            raise InputError(f"--where {entry!r} is not COLUMN=VALUE")
    return dict(entry.split("=", 1) for entry in where or [])


def _short(path: str, among: list[str]) -> str:
    """A file's stem as its name, or the whole path where stems are not unique."""
    stems = [Path(other).stem for other in among]
    return Path(path).stem if stems.count(Path(path).stem) == 1 else path


def _kinds(store: Store, name: str, by: str | None, where: dict[str, str]) -> list[tuple[str, Store, dict[str, str]]]:
    if by is None:
        return [(name, store, where)]
    values = dict.fromkeys(str(value) for value in store.prompts.labels(by).tolist())
    return [(f"{name} {by}={value}", store, {**where, by: value}) for value in values]


def _interval(interval: Interval) -> str:
    mark = " !" if interval.caveat else ""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]{mark}"


def _short_point(point: OperatingPoint) -> str:
    if point.recall is None or point.realised_fpr is None:
        return "refused"
    recall = f"{point.recall.value:.2f} [{point.recall.low:.2f}, {point.recall.high:.2f}]"
    return f"{recall} ({100 * point.realised_fpr.value:.2f} %)"


def _point(point: OperatingPoint) -> str:
    if point.recall is None or point.realised_fpr is None:
        return "refused"
    return f"{_interval(point.recall)} at {100 * point.realised_fpr.value:.2f} %"


def _show_fit(fitted: ProbeFit, out_path: str | None) -> None:
    fprs = list(fitted.result.points)
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{fitted.result.kind} probes on {fitted.result.n} prompts, held-out groups"
    )
    table.add_column("site", no_wrap=True)
    table.add_column("AUROC", no_wrap=True)
    for fpr in fprs:
        table.add_column(f"recall at {100 * fpr:g} % FPR (realised)", min_width=26)
    for heading in ("select- ivity", "adjusted p"):
        table.add_column(heading, justify="right", max_width=8)
    for result in fitted.sites:
        style = "bold" if result.site == fitted.chosen else None
        table.add_row(*_cells(result, fprs), style=style)
    for name, interval in fitted.baselines.items():
        table.add_row(f"({name.replace('_', ' ')})", _interval(interval), *[""] * (len(fprs) + 2))
    out.print(table)
    out.print(f"AUROC {fitted.auroc}")
    for fpr, point in fitted.result.points.items():
        said = point.reason if point.reason else f"{_point(point)} realised"
        out.print(f"recall at {100 * fpr:g} % FPR: {said}")
    votes = ", ".join(f"{site} {n}×" for site, n in fitted.record()["chosen_by_fold"].items())
    out.print(
        f"chosen {fitted.chosen}, on folds that do not measure it (outer folds chose {votes}); the AUROC above is "
        "that of this choice"
    )
    for name, gain in fitted.gains.items():
        verdict = "" if gain.low > 0 else ": not better, and what it found may be just that"
        out.print(f"less the baseline {name.replace('_', ' ')}: {_interval(gain)}{verdict}")
    if out_path is not None:
        out.print(f"probe: {out_path}")


def _cells(result: SiteResult, fprs: list[float]) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    points = [_short_point(result.points[fpr]) for fpr in fprs]
    return [result.site, _interval(result.auroc), *points, number(result.selectivity), number(result.p_adjusted)]


def _show_evaluation(found: Evaluation) -> None:
    out.print(f"{found.kind} probe at {found.site} on {found.n} prompts")
    out.print(f"AUROC {found.auroc}")
    if found.auroc.value < 0.5:
        out.print("below one half: the probe runs the other way here, it is inverted, not weak")
    for fpr, point in found.points.items():
        out.print(f"recall at the threshold set for {100 * float(fpr):g} % FPR: {point.reason or _point(point)}")
    if found.left_out:
        out.print(f"{found.left_out} prompts left out, as the probe was trained on their groups")


def _show_transfer(cells: list[Transfer]) -> None:
    """A matrix where it fits on a page, else a line for each pair."""
    columns = list(dict.fromkeys(cell.measured_on for cell in cells))
    title = "AUROC on held-out groups: ▼ inverted, ~ chance would do"
    if len(columns) > MOST_COLUMNS:
        table = Table("fitted on", "measured on", "AUROC", box=box.SIMPLE_HEAD, pad_edge=False, title=title)
        for cell in cells:
            table.add_row(cell.fitted_on, cell.measured_on, _transfer_cell(cell))
    else:
        table = Table("fitted on \\ measured on", *columns, box=box.SIMPLE_HEAD, pad_edge=False, title=title)
        for fitted in dict.fromkeys(cell.fitted_on for cell in cells):
            own = {cell.measured_on: cell for cell in cells if cell.fitted_on == fitted}
            table.add_row(fitted, *[_transfer_cell(own[name]) for name in columns])
    out.print(table)


def _transfer_cell(cell: Transfer) -> str:
    chance = cell.auroc.low <= 0.5 <= cell.auroc.high
    return f"{_interval(cell.auroc)}{' ▼' if cell.inverted else ''}{' ~' if chance else ''}"
