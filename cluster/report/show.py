"""How text and numbers are written in the report.

Prompts may hold anything: markup, terminal codes, marks that reverse the reading direction. Everything is escaped,
and what would be invisible or would move other text is written as a visible symbol.
"""

import unicodedata
from typing import Any

from markupsafe import Markup, escape

_ASCII = """
NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS
US
"""
_CONTROLS = _ASCII.split()
_BY_NAME = {0x7F: "⟨DEL⟩", 0x200B: "⟨ZWSP⟩", 0x200C: "⟨ZWNJ⟩", 0x200D: "⟨ZWJ⟩", 0xFEFF: "⟨BOM⟩"}
# Cc control, Cf format (bidirectional overrides among them), Cs half surrogates, Co private use, Cn unassigned,
# Zl and Zp line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str, *, longest: int | None = None) -> Markup:
    """Escaped text with hidden characters shown as symbols, cut after `longest` characters."""
    shown = text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
    return Markup("").join(_one(character) for character in shown)


def plain(text: str) -> str:
    """The same for SVG titles, which hold text only; not escaped yet."""
    return "".join(symbol(character) or character for character in text)


def symbol(character: str) -> str | None:
    """The visible stand-in of a hidden character, or None for one that shows itself."""
    code = ord(character)
    if character == "\n":
        return "↵"
    if unicodedata.category(character) not in _HIDDEN:
        return None
    if code < 0x20:
        return f"⟨{_CONTROLS[code]}⟩"
    return _BY_NAME.get(code, f"⟨U+{code:04X}⟩")


def _one(character: str) -> Markup:
    stand_in = symbol(character)
    if stand_in is None:
        return escape(character)
    return Markup('<span class="hidden-character">{}</span>').format(stand_in)


def number(value: float, digits: int = 3) -> str:
    """A statistic such as an AUROC with `digits` decimals, with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float, digits: int = 1) -> str:
    """`12.3 %` for 0.123; whole hundreds without decimals."""
    scaled = 100 * value
    return f"{scaled:.0f} %" if scaled in (0, 100) else f"{scaled:.{digits}f} %"


def interval(record: dict[str, Any], *, as_percent: bool = False) -> str:
    """`0.987 [0.981, 0.992]` of a record with value, low and high; `–` where there is no figure."""
    if record.get("value") is None:
        return "–"
    if as_percent:
        low, high = (percent(record[key]).removesuffix(" %") for key in ("low", "high"))
        return f"{percent(record['value'])} [{low}, {high}]"
    return f"{number(record['value'])} [{number(record['low'])}, {number(record['high'])}]"


def count(value: float) -> str:
    """A number of things with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def byte_size(value: float) -> str:
    """`12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def short_digest(digest: str) -> str:
    """The first 12 hex digits: enough to tell two apart by eye. The whole digest stands in the provenance."""
    return digest[:12]
