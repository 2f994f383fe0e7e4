"""A place in a model where a vector is read or written."""

import re
from collections.abc import Callable, Sequence
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

_PATTERN = re.compile(
    r"(?P<kind>[a-z_]+)\.(?:\*|(?P<first>-?[0-9]+)(?P<range>-(?P<last>-?[0-9]+))?)(?:\.(?P<head>\*|[0-9]+))?"
)


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
        if text.startswith("module:") and len(text) > len("module:") and "*" not in text:
            return Site("module", path=text.removeprefix("module:"))
        match = _match(text)
        layer, head = match["first"], match["head"]
        if layer is None or layer.startswith("-") or match["range"] or head == "*":
            raise unknown_site(text)
        return Site(match["kind"], layer=int(layer), head=None if head is None else int(head))


def _match(text: str) -> re.Match[str]:
    match = _PATTERN.fullmatch(text)
    if match is None or match["kind"] not in KINDS or (match["head"] and match["kind"] != "heads"):
        raise unknown_site(text)
    return match


def unknown_site(text: str) -> InputError:
    return InputError(
        f"unknown site {text!r}: write KIND.LAYER, e.g. resid_post.15, resid_post.8-20, resid_post.* or "
        f"resid_post.-1, with KIND one of {', '.join(KINDS)}; heads.12.3 for one head; or module:dotted.path, with a "
        "* in place of the number of the block"
    )


def split_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """The single patterns of a comma-separated list or a sequence of such lists."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    found = tuple(part.strip() for entry in listed for part in entry.split(",") if part.strip())
    if not found:
        raise InputError("no site is named: give at least one, e.g. --sites resid_post.15")
    return found


def expand_sites(
    patterns: str | Sequence[str],
    n_layers: int,
    *,
    n_heads: int | None = None,
    has: Callable[[Site], bool] = lambda site: True,
) -> list[Site]:
    """Concrete sites in the order asked, each once.

    n_layers  the model's number of blocks: `*` in place of a layer is all of them, and -1 is the last
    n_heads   heads in a block: what `*` in place of a head stands for
    has       whether the model has a site: where only some blocks have one, `*` means those. Where none has it, all
              are given, so that who looks for them can say what there is instead

    Raises InputError for an unknown kind, for a layer out of range, naming the range, and for a range from a higher
    layer to a lower one.
    """
    sites: dict[Site, None] = {}
    for pattern in split_patterns(patterns):
        for site in _expand(pattern, n_layers, n_heads, has):
            sites.setdefault(site)
    return list(sites)


def _expand(pattern: str, n_layers: int, n_heads: int | None, has: Callable[[Site], bool]) -> list[Site]:
    if pattern.startswith("module:"):
        if "*" not in pattern:
            return [Site.parse(pattern)]
        if pattern.split(".").count("*") != 1 or pattern.count("*") != 1:
            raise InputError(f"site {pattern!r}: one * may stand in place of the number of a block, e.g. layers.*.mlp")
        found = [Site.parse(pattern.replace("*", str(layer))) for layer in range(n_layers)]
        return [site for site in found if has(site)] or found
    match = _match(pattern)
    heads: list[int | None] = [int(match["head"])] if match["head"] not in (None, "*") else [None]
    if match["head"] == "*":
        if n_heads is None:
            raise InputError(f"site {pattern!r}: name one head, e.g. heads.12.3, or take all of a block as heads.12")
        heads = list(range(n_heads))
    first, last = _layers(match, n_layers)
    found = [Site(match["kind"], layer=layer, head=head) for layer in range(first, last + 1) for head in heads]
    return found if match["first"] else [site for site in found if has(site)] or found


def _layers(match: re.Match[str], n_layers: int) -> tuple[int, int]:
    """The first and the last layer that a pattern names."""
    if match["first"] is None:
        return 0, n_layers - 1
    first, last = (
        int(layer) + (n_layers if layer.startswith("-") else 0)
        for layer in (match["first"], match["last"] or match["first"])
    )
    if not (0 <= first < n_layers and 0 <= last < n_layers):
        raise InputError(
            f"site {match.string!r} is out of range: this model has {n_layers} blocks, so layers run from 0 to "
            f"{n_layers - 1} (or -{n_layers} to -1)"
        )
    if first > last:
        raise InputError(
            f"site {match.string!r} goes from layer {first} back to {last}: write the lower layer first, "
            f"{match['kind']}.{last}-{first}"
        )
    return first, last
