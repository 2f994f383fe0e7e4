"""A page from a template: one file without scripts that asks nothing of a network.

The Content-Security-Policy allows the page's own style sheet by its hash and nothing else: no script, no image,
no connection. So even text that slipped through the escaping could neither run nor call home.
"""

import base64
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cluster.report.show import number, percent, visible
from store.direction import write_atomically


def render_page(template: str, *, brand: str, title: str, subtitle: str, **parts: Any) -> str:
    """The whole page: a template of this folder that extends `base.html.jinja`, with its parts. Text is escaped."""
    environment = Environment(
        loader=PackageLoader("cluster.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"visible": _visible, "number": number, "percent": percent})
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        brand=brand,
        title=title,
        subtitle=subtitle,
        style=Markup(style),
        policy=content_policy(style),
        version=version("thresher"),
        **parts,
    )


def write_page(path: str | Path, page: str) -> None:
    """Writes the file whole or not at all."""
    write_atomically(Path(path), page.encode("utf-8", errors="replace"))


def content_policy(style: str) -> str:
    """Nothing but this style sheet, by its hash."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _visible(text: object, longest: int | None = None) -> Markup:
    return visible(str(text), longest=longest)
