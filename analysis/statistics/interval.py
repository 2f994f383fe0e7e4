"""An estimate together with its interval and what the interval rests on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic with its confidence interval.

    `units` is the number of independent units that the interval rests on (groups, not rows, where rows are
    clustered) and `noun` what such a unit is called. `caveat` says in words where the interval is known not
    to hold its level; None where it does.
    """

    value: float
    low: float
    high: float
    level: float
    method: str
    units: int
    noun: str = "groups"
    caveat: str | None = None

    def __str__(self) -> str:
        text = (
            f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {100 * self.level:g} %, "
            f"{self.method} over {self.units} {self.noun}"
        )
        return f"{text} ({self.caveat})" if self.caveat else text

    def record(self) -> dict[str, object]:
        """JSON form; `value`, `low`, `high` are plain floats."""
        record: dict[str, object] = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "method": self.method,
            "units": self.units,
            "noun": self.noun,
        }
        if self.caveat:
            record["caveat"] = self.caveat
        return record


def plural(noun: str) -> str:
    """The plural under which units of a group column are counted: city -> cities, fact_id -> fact_ids."""
    if noun.endswith("y") and noun[-2:-1] not in ("a", "e", "i", "o", "u"):
        return noun[:-1] + "ies"
    return noun if noun.endswith("s") else noun + "s"
