"""The baselines' scores against scikit-learn and numpy, and their realised false-alarm rate in simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from analysis.monitors import Calibrator
from analysis.monitors.baselines import (
    Baseline,
    DifferenceNorm,
    DifferencePca,
    Mahalanobis,
    PerplexityDifference,
    calibrated,
)
from store.errors import InputError
from tests.analysis.monitors.clean import names

MIX = np.random.default_rng(9).standard_normal((6, 6)) * np.array([200, 1, 1, 1, 1, 0.1])


def features(rng: np.random.Generator, n: int, width: int = 6) -> np.ndarray:
    return np.asarray((rng.standard_t(5, (n, 6)) @ MIX)[:, :width])


def test_scores_are_those_of_their_definition() -> None:
    rng = np.random.default_rng(0)
    clean, new = features(rng, 120), features(rng, 40)
    mean, deviation = clean.mean(0), clean.std(0, ddof=1)

    norm = DifferenceNorm()
    norm.fit(clean)
    np.testing.assert_allclose(norm.score(new), ((new - mean) / deviation).max(1))

    distance = Mahalanobis()
    distance.fit(clean)
    wolf = LedoitWolf().fit((clean - mean) / deviation)
    centred = (new - mean) / deviation
    exact = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(wolf.covariance_), centred)
    np.testing.assert_allclose(distance.score(new), exact, rtol=1e-8)

    model = PCA(3, svd_solver="full").fit(clean)
    along = (new - mean) @ model.components_.T
    for part, wanted in (
        ("residual", np.linalg.norm(new - mean - along @ model.components_, axis=1)),
        ("projection", np.abs(along / np.sqrt(model.explained_variance_)).max(1)),
    ):
        components = DifferencePca(components=3, part=part)
        components.fit(clean)
        np.testing.assert_allclose(components.score(new), wanted, rtol=1e-8)

    perplexity = PerplexityDifference()
    perplexity.fit(clean[:, :2])
    gap, own = new[:, 1] - new[:, 0], clean[:, 1] - clean[:, 0]
    np.testing.assert_allclose(perplexity.score(new[:, :2]), np.abs(gap - own.mean()) / own.std(ddof=1))


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (DifferenceNorm, 6),
        (Mahalanobis, 6),
        (lambda: DifferencePca(components=3), 6),
        (lambda: DifferencePca(components=3, part="projection"), 6),
        (PerplexityDifference, 2),
    ],
    ids=["norm", "mahalanobis", "residual", "projection", "perplexity"],
)
def test_false_alarms_stay_at_the_rate_asked_for(make: Callable[[], Baseline], width: int) -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(60):
        baseline = make()
        threshold, known = calibrated(baseline, features(rng, 120, width), names(120), calibrator=Calibrator(fpr=0.05))
        rates.append(np.mean(baseline.score(features(rng, 1000, width)) > threshold))
    assert 0.02 < np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(60)
    assert known["groups"] == 60


def test_what_cannot_be_fitted_is_refused() -> None:
    clean = features(np.random.default_rng(2), 120)
    with pytest.raises(InputError, match="no finite scores"):
        calibrated(DifferenceNorm(), np.where(clean > 400, np.nan, clean), names(120), calibrator=Calibrator(fpr=0.05))
    with pytest.raises(InputError, match="minmax has no halves"):
        calibrated(DifferenceNorm(), clean, names(120), calibrator=Calibrator(rule="minmax"))
    with pytest.raises(InputError, match="more than 5 prompts"):
        DifferencePca(components=5).fit(clean[:5])
    with pytest.raises(InputError, match="use projection or residual"):
        DifferencePca(part="best")
