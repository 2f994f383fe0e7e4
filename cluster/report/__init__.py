"""One self-contained HTML page of what a run found."""

from cluster.report.page import write_report

__all__ = ["write_report"]
