"""What a monitor of weight directions must beat: detectors that look at activations or probabilities alone.

Each is fitted on the scale half of clean prompts and gives one score a prompt, the larger the stranger; `calibrated`
sets its threshold on the other half by split-conformal prediction, as a monitor's is. Features come from elsewhere, as
arrays with a row per prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from analysis.monitors.calibrate import Calibrator
from store.errors import InputError


class Baseline(Protocol):
    def fit(self, features: np.ndarray) -> None:
        """From features float [n, …] of clean prompts."""

    def score(self, features: np.ndarray) -> np.ndarray:
        """float64 [n]; the larger the stranger."""


@dataclass(kw_only=True)
class DifferenceNorm:
    """How far a fine-tune moves activations: features [n, s], of s sites the largest ‖h_tuned − h_base‖ over a prompt's
    tokens. The score is the largest over sites, each in standard deviations from its mean."""

    _centre: np.ndarray = field(init=False, repr=False)
    _spread: np.ndarray = field(init=False, repr=False)

    def fit(self, features: np.ndarray) -> None:
        self._centre, self._spread = _standard(features)

    def score(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(((features - self._centre) / self._spread).max(axis=1))


@dataclass(kw_only=True)
class Mahalanobis:
    """Distance of a residual from those of clean prompts (Lee et al., arXiv 1807.03888): features [n, width], a
    prompt's last token or largest values over tokens. Standardised first, for massive activations, then Ledoit and
    Wolf's covariance (J. Multivar. Anal. 88 (2004) 365). The score is the squared distance."""

    _centre: np.ndarray = field(init=False, repr=False)
    _spread: np.ndarray = field(init=False, repr=False)
    _model: LedoitWolf = field(init=False, repr=False)

    def fit(self, features: np.ndarray) -> None:
        self._centre, self._spread = _standard(features)
        self._model = LedoitWolf().fit((features - self._centre) / self._spread)

    def score(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.mahalanobis((np.asarray(features, np.float64) - self._centre) / self._spread))


@dataclass(kw_only=True)
class DifferencePca:
    """Principal components of activation differences: features [n, width], h_tuned − h_base of one token a prompt.

    components  how many
    part        `projection`: the largest standardised coordinate along a component, on either side; `residual`: the
                length of what the components do not explain
    """

    components: int = 10
    part: str = "residual"
    _model: PCA = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.part not in ("projection", "residual"):
            raise InputError(f"unknown part of a PCA {self.part!r}: use projection or residual")

    def fit(self, features: np.ndarray) -> None:
        if len(features) <= self.components:
            raise InputError(f"{self.components} components take more than {len(features)} prompts: give more")
        self._model = PCA(n_components=self.components, svd_solver="full").fit(np.asarray(features, np.float64))

    def score(self, features: np.ndarray) -> np.ndarray:
        values = np.asarray(features, np.float64)
        along = self._model.transform(values)
        if self.part == "projection":
            deviation = np.sqrt(self._model.explained_variance_)
            return np.asarray((np.abs(along) / np.maximum(deviation, 1e-12)).max(axis=1))
        return np.asarray(np.linalg.norm(values - self._model.inverse_transform(along), axis=1))


@dataclass(kw_only=True)
class PerplexityDifference:
    """How differently two models find a prompt: features [n, 2], its mean log-probability by the base and by the tuned
    model. The score is the distance of their difference from its mean, in standard deviations."""

    _centre: np.ndarray = field(init=False, repr=False)
    _spread: np.ndarray = field(init=False, repr=False)

    def fit(self, features: np.ndarray) -> None:
        self._centre, self._spread = _standard(features[:, 1] - features[:, 0])

    def score(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(features[:, 1] - features[:, 0] - self._centre) / self._spread)


def calibrated(
    baseline: Baseline, features: np.ndarray, groups: np.ndarray, *, calibrator: Calibrator
) -> tuple[float, dict[str, object]]:
    """Fits `baseline` on the scale half of clean prompts and gives the threshold of the other half, with what is known
    of its rate (`Calibrator.threshold`). A prompt is flagged where its score is above.

    features [n, …], groups string [n]. The calibrator's rule plays no part: scores are not standardised again.
    Raises InputError where there are too few groups, a score is not finite, or for the paper's rule.
    """
    if calibrator.rule == "minmax":
        raise InputError("rule minmax has no halves, and a baseline needs them: use another rule")
    scale, held = calibrator.halves(groups)
    baseline.fit(features[scale])
    scores = baseline.score(features[held])
    if not np.isfinite(scores).all():
        raise InputError("some calibration prompts have no finite scores: leave them out")
    return calibrator.threshold(scores, groups[held])


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(features, np.float64)
    deviation = values.std(axis=0, ddof=1)
    return values.mean(axis=0), np.maximum(deviation, 1e-3 * np.median(deviation) + 1e-12)
