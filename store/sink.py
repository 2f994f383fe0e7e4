"""What takes the activations of one unit as they leave the model, and the columns it makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from store.unit import Unit

ROWS = ("token", "prompt", "unit")
# What a token can be: of a template or special, of a plain text, or of a message.
ROLES = ("template", "text", "system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class SinkBatch:
    """The selected rows of one batch of prompts, on the model's device.

    activations  site -> tensor [rows, width…] in the compute dtype. Valid only during the call: copy what you keep
    prompt       int32 [rows], row of the unit (0 is the unit's first prompt) that each activation row speaks of;
                 rows of one prompt are consecutive and in order of position
    position     int32 [rows], token position in the prompt, from 0
    token_id     int32 [rows]
    role         int8 [rows], index into ROLES
    logits       callable giving [rows, vocabulary] for a slice of rows, for sinks that ask; None otherwise
    """

    activations: Mapping[str, Any]
    prompt: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    role: np.ndarray
    logits: Any | None = None


@dataclass(frozen=True, kw_only=True)
class SinkColumn:
    """One column of one unit. `rows` says what a row of `values` speaks of.

    `token`: one row per selected token, in unit order; `prompt`: one row per prompt of the unit; `unit`: free shape.
    """

    name: str
    rows: str
    values: np.ndarray


class Sink(Protocol):
    """Plain data that is cheap to send to a worker, which uses it for many units, one after the other."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it reads."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Its columns' names and what a row of each speaks of; known before anything runs."""

    def settings(self) -> dict[str, Any]:
        """JSON of all that decides its numbers: part of the key of each of its columns."""

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        """A unit begins; `prompts` are its rows of the prompt set."""

    def add(self, batch: SinkBatch) -> None:
        """Batches come in any order of prompts, each prompt whole in one batch."""

    def finish(self) -> list[SinkColumn]:
        """The unit's columns, each exactly once, in unit order."""


def scored_from(token_id: np.ndarray, position: np.ndarray, prefix: Sequence[int] | None) -> int:
    """First of one prompt's rows that is scored: after the first token, or after the prefix it begins with."""
    if prefix is None:
        return 0
    last = len(token_id) - 1
    start = 0
    while start < last and position[start] == start:
        if start and (start >= len(prefix) or token_id[start] != prefix[start] or token_id[0] != prefix[0]):
            break
        start += 1
    return start
