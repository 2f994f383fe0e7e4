"""What is printed of flagged prompts, whatever flags them: the rate, the domains, tokens in colour."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cluster.console import out


def rate_words(part: dict[str, Any]) -> str:
    """`3 of 40 prompts flagged: 7.5 % [1.6, 20.4] (…)`, of {n, flagged, rate}."""
    rate = part["rate"]
    return (
        f"{part['flagged']} of {part['n']} prompts flagged: {100 * rate['value']:.1f} % "
        f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}] (95 % interval, {rate['method']} over {rate['units']} "
        f"{rate['noun']})"
    )


def print_unscored(unscored: int) -> None:
    if unscored:
        out.print(
            f"[red]{unscored} prompts more could not be scored[/]: they failed or their activations are not "
            "finite, they are not known to be clean"
        )


def print_domains(domains: dict[str, Any], nameless: dict[str, Any] | None, most: int = 20) -> None:
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


def coloured_tokens(tokens: Sequence[str], scores: Sequence[float | None], *, position: int, around: int = 12) -> Text:
    """The tokens near `position`, red above 0 and blue below, the farther the brighter; control characters visible."""
    near = slice(max(0, position - around), position + around)
    largest = max((abs(score) for score in scores[near] if score is not None), default=0.0) or 1.0
    text = Text()
    for token, score in zip(tokens[near], scores[near], strict=True):
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
        strength = int(255 * abs(score or 0.0) / largest)
        colour = f"rgb({strength},0,0)" if (score or 0.0) > 0 else f"rgb(0,0,{strength})"
        text.append(shown, style=f"on {colour}" if strength > 40 else "")
    return text
