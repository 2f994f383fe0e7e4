"""An alarm: a claim with its statistic, its interval, its evidence and where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found in which model.

    interval    (low, high) of the statistic, 95 %; None where there is none
    p_adjusted  after correction over everything that was searched; None where no test was made
    """

    model: str
    kind: str
    claim: str
    statistic: float
    interval: tuple[float, float] | None = None
    p_adjusted: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
