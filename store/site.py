"""A place in a model where a vector is read or written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from store.errors import InputError

KINDS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_in",
    "attn_out",
    "mlp_in",
    "mlp_out",
    "heads",
    "neurons",
    "router",
)

_PATTERN = re.compile(r"^(?P<kind>[a-z_]+)\.(?P<layer>\*|-?\d+(?:-\d+)?)(?:\.(?P<head>\d+))?$")


@dataclass(frozen=True, order=True)
class Site:
    """`resid_post.15`, `heads.12.3`, `module:model.layers.3.mlp`. Layers count blocks from 0.

    `resid_pre.0` is the embedding output; `…_in` is after the norm that feeds the block. A module's output is
    meant unless its path ends in `@in`.
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.kind == "module":
            return f"module:{self.path}"
        head = "" if self.head is None else f".{self.head}"
        return f"{self.kind}.{self.layer}{head}"

    @staticmethod
    def parse(text: str) -> "Site":
        """One concrete site. Raises InputError for anything else, patterns included."""
        if text.startswith("module:") and len(text) > len("module:"):
            return Site("module", path=text.removeprefix("module:"))
        match = _PATTERN.match(text)
        if match is None or match["kind"] not in KINDS or not match["layer"].isdigit():
            raise unknown_site(text)
        if match["head"] is not None and match["kind"] != "heads":
            raise unknown_site(text)
        return Site(
            match["kind"], layer=int(match["layer"]), head=None if match["head"] is None else int(match["head"])
        )


def unknown_site(text: str) -> InputError:
    return InputError(
        f"unknown site {text!r}: write KIND.LAYER, e.g. resid_post.15, resid_post.8-20, resid_post.* or "
        f"resid_post.-1, with KIND one of {', '.join(KINDS)}; or module:dotted.path"
    )


def split_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """The single patterns of a comma-separated list or a sequence of such lists."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    found = tuple(part.strip() for entry in listed for part in entry.split(",") if part.strip())
    if not found:
        raise InputError("no site is named: give at least one, e.g. --sites resid_post.15")
    return found


def expand_sites(patterns: str | Sequence[str], n_layers: int) -> list[Site]:
    """Concrete sites in the order asked, each once. `n_layers` is the model's number of blocks.

    Raises InputError for an unknown kind and for a layer out of range, naming the range.
    """
    sites: dict[Site, None] = {}
    for pattern in split_patterns(patterns):
        for site in _expand(pattern, n_layers):
            sites.setdefault(site)
    return list(sites)


def _expand(pattern: str, n_layers: int) -> list[Site]:
    if pattern.startswith("module:"):
        return [Site.parse(pattern)]
    match = _PATTERN.match(pattern)
    if match is None or match["kind"] not in KINDS or (match["head"] and match["kind"] != "heads"):
        raise unknown_site(pattern)
    layer = match["layer"]
    if layer == "*":
        first, last = 0, n_layers - 1
    elif "-" in layer[1:]:
        first, last = (int(part) for part in layer.split("-"))
    else:
        first = last = int(layer)
        if layer.startswith("-"):
            first = last = n_layers + int(layer)
    if not 0 <= first <= last < n_layers:
        raise InputError(
            f"site {pattern!r} is out of range: this model has {n_layers} blocks, so layers run from 0 to "
            f"{n_layers - 1} (or -{n_layers} to -1)"
        )
    head = None if match["head"] is None else int(match["head"])
    return [Site(match["kind"], layer=index, head=head) for index in range(first, last + 1)]
