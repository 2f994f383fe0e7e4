"""How certificates are shown: one that was just made, and those that a store holds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cluster.console import out
from store import Store

if TYPE_CHECKING:  # harvest loads torch, which showing a certificate does not need
    from harvest import Certificate


def print_certificate(certificate: "Certificate") -> None:
    """Errors and bounds by site; where nothing was measured, why."""
    if certificate.left_out is not None:
        out.print("[yellow]not certified[/]: ", end="")
        out.print(certificate.left_out, markup=False, soft_wrap=True)
        return
    table = Table("site", "rows", "largest error", "bound", "beyond", "median error", "bound", "")
    for name, site in certificate.sites.items():
        table.add_row(
            name,
            str(site.rows),
            f"{site.largest:.2e}",
            f"{site.bound_largest:g}",
            f"{site.beyond} of {site.bound_beyond}",
            f"{site.median:.2e}",
            f"{site.bound_median:g}",
            "[green]holds[/]" if site.ok else "[red]exceeded[/]",
        )
    streamed = ", streamed from its files" if certificate.streamed else ""
    out.print(f"certificate: sampled prompts run again alone in float32{streamed}, relative error of the stored rows")
    out.print(table)
    for name, site in certificate.sites.items():
        if not site.ok:
            out.print("[red]exceeded[/] ", end="")
            out.print(f"{name}: prompts {', '.join(site.exceeding)}", markup=False, soft_wrap=True)


def describe_certificates(store: Store) -> dict[str, Any]:
    """JSON of the certificates that a store holds.

    certified     False where any bound was exceeded, True where every model with raw columns kept them, otherwise None
    certificates  each with `exceeded`: the sites off their bounds, and the prompts where it was seen
    """
    records = store.certificates()
    measured: dict[str, bool] = {}
    for record in records:
        if record.get("left_out") is None:
            measured[record["model"]] = measured.get(record["model"], True) and record["ok"]
    captures = {
        capture.id
        for capture in store.captures
        if any(column.settings.get("sink") == "raw" for column in capture.columns)
    }
    raw = {model for model, capture in store.wanted() if capture in captures}
    known = False if not all(measured.values()) else (True if raw and raw <= measured.keys() else None)
    return {"certified": known, "certificates": [_told(record) for record in records]}


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": record["model"],
        "ok": record["ok"],
        "prompts": record["prompts"],
        "exceeded": {
            name: site.get("exceeding") or record["prompts"] for name, site in record["sites"].items() if not site["ok"]
        },
        "left_out": record.get("left_out"),
    }


def print_certified(data: Mapping[str, Any]) -> None:
    """What `describe_certificates` found, for people."""
    for record in data["certificates"]:
        for site, prompts in record["exceeded"].items():
            out.print("[red]a certificate's bound is exceeded[/]: ", end="")
            out.print(f"{record['model']} {site}, prompts {', '.join(prompts)}", markup=False, soft_wrap=True)
        if record["left_out"] is not None:
            out.print(f"[yellow]not certified[/] {record['model']}: ", end="")
            out.print(record["left_out"], markup=False, soft_wrap=True)
    if data["certified"]:
        out.print("certified: every sampled row is within its bounds")
    elif data["certified"] is None:
        out.print("[yellow]not certified[/]: 'thresher verify STORE --deep' runs sampled prompts again in float32")
