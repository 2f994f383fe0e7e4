"""The share of prompts that is flagged, in all and by domain, with intervals that respect groups."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.statistics.bootstrap import bootstrap_mean
from store import InputError, PromptSet


def flag_rates(
    flags: np.ndarray,
    scored: np.ndarray,
    groups: np.ndarray,
    *,
    noun: str,
    domains: np.ndarray | None = None,
    without: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """JSON {n, flagged, rate} over the prompts that were scored; with `domains` also of each of their values.

    flags, scored  bool [n]; an unscored prompt is in no figure
    groups         [n], what the intervals rest on, `noun` in the plural
    domains        object [n], a name each or None (see `domain_names`): `domains` by name, and `no_domain` of the
                   prompts that have none, None where all have one
    without        bool [n] by name: prompts to be counted, under that name, beside each rate

    `rate` is None where no prompt was scored.
    """
    counted = without or {}

    def part(here: np.ndarray) -> dict[str, Any]:
        chosen = here & scored
        return {
            "n": int(chosen.sum()),
            "flagged": int(flags[chosen].sum()),
            "rate": bootstrap_mean(flags[chosen], groups[chosen], noun=noun).record() if chosen.any() else None,
            **{name: int((here & mask).sum()) for name, mask in counted.items()},
        }

    told: dict[str, Any] = part(np.ones(len(flags), bool))
    if domains is not None:
        names = sorted({name for name in domains if name is not None})
        told["domains"] = {name: part(domains == name) for name in names}
        nameless = np.array([name is None for name in domains])
        told["no_domain"] = part(nameless) if nameless.any() else None
    return told


def domain_names(prompts: PromptSet, column: str) -> np.ndarray:
    """Object [n]: the value of each prompt as text, None where it has none. Raises InputError for lists and the like.

    A column is of one type, so that no two of its values are the same as text.
    """
    prompts.labels(column)
    values = prompts.table.column(column)
    if pa.types.is_nested(values.type):
        raise InputError(
            f"column {column!r} holds {values.type}, which names no domain: give a column of single values"
        )
    named = [None if value is None else str(value) for value in values.to_pylist()]
    return np.array(named, dtype=object)
