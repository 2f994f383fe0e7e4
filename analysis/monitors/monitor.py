"""Monitors: directions with a calibrated threshold on the largest score of a prompt.

A prompt's score along a direction is taken at its most extreme tokens on either side. `extremes` [n, t, 2] holds,
for n prompts and t directions, the largest score over the prompt's tokens and the largest of the negated score. A
monitor standardises each of these 2 t numbers and flags the prompt when the largest of them exceeds one threshold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from store.digest import digest_json, sha256
from store.direction import Direction, load_directions, save_directions
from store.errors import InputError
from store.model_ref import ModelRef

SCORINGS = ("cosine", "projection")
RULES = ("z", "minmax")
FORMAT = "thresher-monitor-1"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of n prompts: `score` float64 [n], the largest standardised extreme; `direction` int64 [n], whose it is;
    `side` int64 [n], 0 where the direction fired upwards, 1 downwards; `flagged` bool [n].

    A prompt with an extreme that is not finite is not scored: its score is NaN, direction and side are −1, and it
    is not flagged, which does not make it clean."""

    score: np.ndarray
    direction: np.ndarray
    side: np.ndarray
    flagged: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Monitor:
    """Directions, how activations are scored along them, and the calibration.

    scoring      `cosine` of the activation with the direction, or `projection` on it
    rule         `z`: centre and spread from one half of the calibration prompts, threshold from the other;
                 `minmax`: the range of Watch the Weights (arXiv 2508.00161), threshold 0.01 beyond it
    prefix       token ids that every calibration prompt begins with: not scored where a prompt begins with them
    centre       float64 [t, 2], subtracted from the extremes
    spread       float64 [t, 2], divides the rest
    threshold    a prompt is flagged when its largest standardised extreme is above it
    calibration  what it rests on: counts, the rate asked for, its bounds (see `calibrate`)
    model        the model it was calibrated on: name, adapter, digest and compute dtype; empty where not known
    delta        the weight difference its directions are of: its digest and those of base and tuned model
    """

    directions: tuple[Direction, ...]
    scoring: str
    rule: str
    prefix: tuple[int, ...]
    centre: np.ndarray
    spread: np.ndarray
    threshold: float
    calibration: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    delta: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`monitor-` and 12 hex digits of all that decides its numbers: names its columns."""
        vectors = [[d.name, d.site, sha256(np.ascontiguousarray(d.vector).tobytes())] for d in self.directions]
        return f"monitor-{digest_json([vectors, self._settings()])[:12]}"

    def standardise(self, extremes: np.ndarray) -> np.ndarray:
        """float64, the shape of `extremes` [n, t, 2]."""
        return (np.asarray(extremes, np.float64) - self.centre) / self.spread

    def score(self, extremes: np.ndarray) -> Scores:
        """Scores prompts by their extremes [n, t, 2]."""
        flat = self.standardise(extremes).reshape(len(extremes), -1)
        finite = np.isfinite(flat).all(axis=1)
        best = flat.argmax(axis=1)
        score = np.where(finite, flat[np.arange(len(flat)), best], np.nan)
        return Scores(
            score=score,
            direction=np.where(finite, best // 2, -1),
            side=np.where(finite, best % 2, -1),
            flagged=score > self.threshold,
        )

    def check(self, model: ModelRef) -> None:
        """Raises InputError unless `model`, resolved, is the one this was calibrated on, in the same dtype."""
        if not self.model:
            raise InputError(f"{self.id} does not say which model it was calibrated on: fit it again")
        own = ModelRef(self.model["name"], adapter=self.model["adapter"], dtype=self.model["dtype"])
        if self.model["digest"] != model.digest:
            raise InputError(
                f"{self.id} was calibrated on {described(own, self.model['digest'])}, this is "
                f"{described(model, model.digest)}: its threshold means nothing here, give that model"
            )
        if own.dtype != model.dtype:
            raise InputError(
                f"{self.id} was calibrated in {own.dtype}, this run is in {model.dtype}: add --dtype {own.dtype}"
            )

    def save(self, path: Path | str) -> None:
        """One safetensors file: the directions, everything else as JSON in its header."""
        save_directions(
            path,
            self.directions,
            {
                "format": FORMAT,
                **self._settings(),
                "calibration": dict(self.calibration),
                "model": dict(self.model),
                "delta": dict(self.delta),
            },
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "scoring": self.scoring,
            "rule": self.rule,
            "prefix": list(self.prefix),
            "centre": self.centre.tolist(),
            "spread": self.spread.tolist(),
            "threshold": self.threshold,
        }


def load_monitor(path: Path | str) -> Monitor:
    """The monitor that `Monitor.save` wrote. Raises InputError where there is none."""
    if not Path(path).is_file():
        raise InputError(f"no monitor at {path}: make one with 'thresher monitor fit DELTA MODEL PROMPTS --out {path}'")
    directions, metadata = load_directions(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds directions without a calibration: fit a monitor of them first")
    return Monitor(
        directions=tuple(directions),
        scoring=metadata["scoring"],
        rule=metadata["rule"],
        prefix=tuple(metadata["prefix"]),
        centre=np.array(metadata["centre"], np.float64),
        spread=np.array(metadata["spread"], np.float64),
        threshold=float(metadata["threshold"]),
        calibration=metadata["calibration"],
        model=metadata.get("model", {}),
        delta=metadata.get("delta", {}),
    )


def described(model: ModelRef, digest: str) -> str:
    """A model in a message: its name, its adapter and the start of its digest."""
    adapter = f" with adapter {model.adapter}" if model.adapter else " without adapter"
    return f"{model.name}{adapter} ({digest[:12]})"


def common_prefix(token_ids: list[np.ndarray]) -> tuple[int, ...]:
    """Token ids with which all prompts begin, such as a chat template's opening. Whole prompts are never covered."""
    if not token_ids:
        return ()
    shortest = min(len(ids) for ids in token_ids) - 1
    first = np.asarray(token_ids[0][:shortest])
    agree = np.ones(shortest, bool)
    for ids in token_ids:
        agree &= np.asarray(ids[:shortest]) == first
    length = shortest if agree.all() else int(np.argmin(agree))
    return tuple(int(token) for token in first[:length])


def watched(directions: list[Direction], *, rule: str, noise: bool = False, last_layers: int = 3) -> list[Direction]:
    """The directions of a weight difference that a monitor of this rule watches.

    z       those above the noise of rounding, or all of them with `noise`
    minmax  as the paper: left vectors of o_proj and down_proj, significant or not, without the last layers
    Raises InputError where none is left.
    """
    if rule == "minmax":
        written = [d for d in directions if d.source.get("role") in ("o", "down") and d.source.get("side") == "left"]
        layers = [int(d.site.rsplit(".", 1)[1]) for d in written]
        end = max((int(d.site.rsplit(".", 1)[1]) for d in directions), default=0) - last_layers
        chosen = [d for d, layer in zip(written, layers, strict=True) if layer <= end]
    else:
        chosen = [d for d in directions if noise or d.source.get("significant", True)]
    if not chosen:
        raise InputError(
            f"none of the {len(directions)} directions can be watched with rule {rule}: the weights did not change by "
            "more than rounding, or only in matrices that this rule leaves out"
        )
    return chosen
