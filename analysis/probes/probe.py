"""A fitted probe: what it needs to score activations, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from analysis.probes.rows import BLOCK_ROWS
from store.direction import write_atomically
from store.errors import InputError

FORMAT = "thresher-probe-1"


def group_hashes(groups: np.ndarray) -> np.ndarray:
    """Hashes of the distinct group names, ascending: uint64 [g]. Tells that a group was seen, not which it was."""
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in set(groups.astype(str).tolist()))
    return np.sort(np.array([int.from_bytes(digest) for digest in digests], np.uint64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A linear score ((x - centre) / scale) · weight + bias of the activations x at one site of one model.

    site          where x is read
    kind          logistic, lda or mass-mean
    label         what it was trained to tell, and `positive` the value that scores high
    model         digest of the model, hex; other models' activations are refused
    centre, scale, weight   float64 [width]; scale is infinity for a feature that never varied
    thresholds    for each false-positive rate (as text, "0.01") the score above which a prompt is flagged
    trained, calibrated   uint64, hashes of the groups that it was trained on and that set its thresholds
    provenance    JSON: prompt set, settings of the column, folds, penalty, how it did where it was fitted
    """

    site: str
    kind: str
    label: str
    positive: str
    model: str
    centre: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float
    thresholds: dict[str, float]
    trained: np.ndarray
    calibrated: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return len(self.weight)

    @property
    def direction(self) -> np.ndarray:
        """The unit vector in activation space along which the score grows fastest: float64 [width]."""
        gradient = self.weight / self.scale
        return gradient / np.linalg.norm(gradient)

    @property
    def column(self) -> Mapping[str, Any]:
        """Settings of the column it was fitted on: tokens, reduce, compute_dtype …; empty where they are not told."""
        settings: Mapping[str, Any] = self.provenance.get("column", {}).get("settings", {})
        return settings

    @property
    def refused(self) -> dict[str, str]:
        """By false-positive rate, as text, why it has no threshold for one that was asked for where it was fitted."""
        asked: Mapping[str, Any] = self.provenance.get("recall_at_fpr", {})
        few = "too few control groups where the probe was fitted"
        return {fpr: asked[fpr].get("reason") or few for fpr in sorted(asked) if fpr not in self.thresholds}

    def scores(self, activations: Any) -> np.ndarray:
        """Scores of activations [n, width…], an array or a store Column: float64 [n], read in blocks.

        Raises InputError where the width is not the probe's.
        """
        width = int(np.prod(activations.shape[1:]))
        if width != self.width:
            raise InputError(f"the probe reads {self.width} features at {self.site}, these activations have {width}")
        scored = np.empty(activations.shape[0])
        for start in range(0, len(scored), BLOCK_ROWS):
            block = np.asarray(activations[start : start + BLOCK_ROWS]).astype(np.float64).reshape(-1, width)
            scored[start : start + len(block)] = ((block - self.centre) / self.scale) @ self.weight + self.bias
        return scored

    def check(self, *, model: str, site: str, dtype: str | None = None) -> None:
        """Raises InputError where activations of `model` (a digest) at `site` are not what the probe was made for.

        dtype  that they are computed in, where it is known; compared with that of the probe's, where that is
        """
        if site != self.site:
            raise InputError(f"the probe was fitted at {self.site}, not at {site}: score it there")
        if model != self.model:
            fitted = self.provenance.get("model_id", self.model[:12])
            raise InputError(
                f"the probe was fitted on model {fitted} (digest {self.model[:12]}), not on one with digest "
                f"{model[:12]}: its scores mean nothing there"
            )
        own = self.column.get("compute_dtype", dtype)
        if dtype is not None and own != dtype:
            raise InputError(f"the probe was fitted in {own}, this run is in {dtype}: add --dtype {own}")

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file, whole or not at all."""
        header = {
            "format": FORMAT,
            "site": self.site,
            "kind": self.kind,
            "label": self.label,
            "positive": self.positive,
            "model": self.model,
            "thresholds": json.dumps(self.thresholds),
            "provenance": json.dumps(self.provenance),
        }
        tensors = {
            "centre": self.centre,
            "scale": self.scale,
            "weight": self.weight,
            "bias": np.array([self.bias]),
            "trained": self.trained,
            "calibrated": self.calibrated,
        }
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_atomically(Path(path), save(contiguous, metadata=header))


def load_probe(path: Path | str) -> Probe:
    """Reads what `Probe.save` wrote. Raises InputError where the file is missing or holds no probe."""
    if not Path(path).is_file():
        raise InputError(f"no probe at {path}: make one with 'thresher probe fit STORE --label L --out {path}'")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} holds no thresher probe (format {header.get('format')!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            return Probe(
                **{name: header[name] for name in ("site", "kind", "label", "positive", "model")},
                thresholds=json.loads(header["thresholds"]),
                provenance=json.loads(header["provenance"]),
                **{name: tensors[name] for name in ("centre", "scale", "weight", "trained", "calibrated")},
                bias=float(tensors["bias"][0]),
            )
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a readable probe: {error}") from error
