"""Sinks that need no knowledge of what is looked for: log-probabilities, and quantised activations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from harvest.unit_rows import UnitRows
from store import SinkBatch, SinkColumn, Unit

IMPOSSIBLE = -1e4  # log-probability: its exponential is 0
# Logits that exist at once, rows times vocabulary.
LOGITS_AT_ONCE = 1 << 24


@dataclass(kw_only=True)
class LogProbSink:
    """Of every selected token: `logprob`, its log-probability given the tokens before it, and `entropy`, that of
    the distribution it was drawn from; both natural, float32. NaN for the first token, which nothing predicts."""

    needs_logits: bool = field(default=True, init=False)
    _rows: UnitRows = field(default_factory=UnitRows, init=False, repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        return ()

    @property
    def columns(self) -> Mapping[str, str]:
        return {"logprob": "token", "entropy": "token"}

    def settings(self) -> dict[str, Any]:
        return {"sink": "logprob"}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._rows = UnitRows()

    def add(self, batch: SinkBatch) -> None:
        n = len(batch.token_id)
        logprob, entropy = torch.full((n,), torch.nan), torch.full((n,), torch.nan)
        start, step = 0, 1
        while batch.logits is not None and start < n:
            logits = batch.logits(slice(start, start + step))
            stop = start + len(logits)
            logs = torch.log_softmax(logits, -1)
            token = torch.from_numpy(batch.token_id[start:stop].astype(np.int64)).to(logs.device)
            logprob[start:stop] = logs.gather(-1, token[:, None])[:, 0].cpu()
            # 0 · log 0 is 0: a token that a mask made impossible adds nothing.
            entropy[start:stop] = -logs.exp().mul_(logs.clamp_min_(IMPOSSIBLE)).sum(-1).cpu()
            start, step = stop, max(1, LOGITS_AT_ONCE // logits.shape[-1])
        first = torch.from_numpy(batch.position == 0)
        logprob[first] = entropy[first] = torch.nan
        self._rows.add(batch.prompt, {"logprob": logprob, "entropy": entropy})

    def finish(self) -> list[SinkColumn]:
        values = self._rows.assembled()
        return [SinkColumn(name=name, rows="token", values=values[name]) for name in self.columns]


@dataclass(kw_only=True)
class Int8Sink:
    """Activations in a quarter of float32's room: `int8.SITE`, int8 [rows, width], and `int8-scale.SITE`, float32
    [rows]. A row is value times scale, with scale the row's largest absolute value over 127: each entry is off by
    half a scale at most. A row that is not finite has scale NaN."""

    sites: tuple[str, ...]
    _rows: UnitRows = field(default_factory=UnitRows, init=False, repr=False)

    @property
    def columns(self) -> Mapping[str, str]:
        return {name: "token" for site in self.sites for name in (f"int8.{site}", f"int8-scale.{site}")}

    def settings(self) -> dict[str, Any]:
        return {"sink": "int8"}

    def start(self, unit: Unit, prompts: pa.Table) -> None:
        self._rows = UnitRows()

    def add(self, batch: SinkBatch) -> None:
        parts: dict[str, torch.Tensor] = {}
        for site in self.sites:
            values = batch.activations[site].float()
            largest = values.abs().flatten(1).amax(1) if values.numel() else values.new_zeros(len(values))
            scale = torch.where(largest.isfinite(), largest / 127, float("nan"))
            divisor = torch.where(scale > 0, scale, 1.0).reshape(-1, *[1] * (values.ndim - 1))
            rounded = torch.nan_to_num(values / divisor, posinf=0, neginf=0).round().clamp(-127, 127)
            parts |= {f"int8.{site}": rounded.to(torch.int8), f"int8-scale.{site}": scale}
        self._rows.add(batch.prompt, parts)

    def finish(self) -> list[SinkColumn]:
        values = self._rows.assembled()
        return [SinkColumn(name=name, rows="token", values=values[name]) for name in self.columns]
