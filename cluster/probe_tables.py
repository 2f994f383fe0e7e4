"""What `thresher probe` prints of a fit, an evaluation, a transfer and of scores."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from analysis.probes.evaluate import Evaluation, Transfer
from analysis.probes.fit import ProbeFit, SiteResult
from analysis.statistics.interval import Interval
from analysis.statistics.operating_point import OperatingPoint
from cluster.console import out
from cluster.prompt_tables import coloured_tokens, print_domains, print_unscored, rate_words

MOST_COLUMNS = 3
MOST_PROMPTS = 20


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


def print_probe_fit(fitted: ProbeFit, out_path: str | None, html: str | None) -> None:
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
    _print_page(html)


def _print_page(html: str | None) -> None:
    if html is not None:
        out.print(Text(f"page: {html}"))


def _cells(result: SiteResult, fprs: list[float]) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    points = [_short_point(result.points[fpr]) for fpr in fprs]
    return [result.site, _interval(result.auroc), *points, number(result.selectivity), number(result.p_adjusted)]


def print_evaluation(found: Evaluation) -> None:
    out.print(f"{found.kind} probe at {found.site} on {found.n} prompts")
    out.print(f"AUROC {found.auroc}")
    if found.auroc.value < 0.5:
        out.print("below one half: the probe runs the other way here, it is inverted, not weak")
    for fpr, point in found.points.items():
        out.print(f"recall at the threshold set for {100 * float(fpr):g} % FPR: {point.reason or _point(point)}")
    if found.left_out:
        out.print(f"{found.left_out} prompts left out, as the probe was trained on their groups")


def print_transfer(cells: list[Transfer], html: str | None) -> None:
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
    _print_page(html)


def _transfer_cell(cell: Transfer) -> str:
    chance = cell.auroc.low <= 0.5 <= cell.auroc.high
    return f"{_interval(cell.auroc)}{' ▼' if cell.inverted else ''}{' ~' if chance else ''}"


def print_probe_scores(record: dict[str, Any]) -> None:
    named = (
        f"{record['kind']} probe of {record['label']!r} at {record['site']}: high where it is {record['positive']!r}"
    )
    out.print(Text(f"{named}; {record['n']} prompts"))
    for fpr, entry in record["flagged_at_fpr"].items():
        at = f"at {100 * float(fpr):g} % FPR"
        if entry["threshold"] is None:
            out.print(Text(f"{at}: no threshold, {entry['reason']}"))
            continue
        out.print(f"{at}, above {entry['threshold']:.3f}: {rate_words(entry)}")
        print_domains(entry.get("domains", {}), entry.get("no_domain"))
    print_unscored(record["unscored"])
    table = Table("prompt", "score", "flagged at", box=box.SIMPLE)
    scored = [row for row in record["prompts"] if row["score"] is not None]
    for row in sorted(scored, key=lambda row: -row["score"])[:MOST_PROMPTS]:
        rates = [f"{100 * float(fpr):g} %" for fpr, flagged in row["flagged_at_fpr"].items() if flagged]
        style = "red" if rates else ""
        table.add_row(Text(row["prompt_id"]), f"{row['score']:.3f}", ", ".join(rates), style=style)
    out.print(table)
    by_token = record["by_token"]
    if by_token is None:
        return
    out.print(Text(by_token.get("meaning") or by_token["reason"]))
    for prompt in by_token["prompts"]:
        out.print(Text(f" {prompt['score']:.3f} {prompt['prompt_id']}: "), end="")
        out.print(coloured_tokens(prompt["tokens"], prompt["scores"], position=prompt["position"]), soft_wrap=True)
