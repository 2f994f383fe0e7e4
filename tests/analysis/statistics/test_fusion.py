"""One threshold for many detectors holds its level however many there are and however they depend."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.conformal import conformal_threshold
from analysis.statistics.fusion import fuse
from store.errors import InputError


def clustered(generator: np.random.Generator, groups: int, detectors: int, *, shared: float) -> np.ndarray:
    """float [groups, 3, detectors]: rows of a group stand together, detectors share a part, tails and units differ."""
    common = generator.normal(size=(groups, 1, 1)) + generator.normal(size=(groups, 3, 1))
    own = generator.normal(size=(groups, 1, detectors)) + generator.normal(size=(groups, 3, detectors))
    scores = shared**0.5 * common + (1 - shared) ** 0.5 * own
    number = np.arange(detectors)
    return np.where(number % 2, np.exp(scores), scores) * 10.0 ** (number % 5) + number


@pytest.mark.parametrize("unit", ["mad", "rank"])
@pytest.mark.parametrize("shared", [0.0, 0.9])
@pytest.mark.parametrize("detectors", [1, 8, 40])
def test_holds_its_level_for_new_groups(unit: str, shared: float, detectors: int) -> None:
    generator = np.random.default_rng(detectors)
    group = np.repeat(np.arange(80), 3)
    rates, alone = [], []
    for _ in range(100):
        scores = clustered(generator, 160, detectors, shared=shared)
        known, new = scores[:80].reshape(240, -1), scores[80:].reshape(240, -1)
        scaling = group < 40
        fusion = fuse(known, group, scaling=scaling, fpr=0.1, unit=unit)
        assert fusion.detectors == detectors
        rates.append(fusion.flags(new).mean())
        own = [conformal_threshold(column, group[~scaling], fpr=0.1) for column in known[~scaling].T]
        alone.append((new > own).any(axis=1).mean())
    error = np.std(rates) / len(rates) ** 0.5
    assert np.mean(rates) < 0.1 + 3 * error
    assert np.mean(rates) > 0.02  # ranks have steps: what ties there is flagged together or not at all
    if detectors > 1:
        assert np.mean(alone) > 0.14  # each detector at the level by itself


def test_where_detectors_agree_bonferroni_catches_less() -> None:
    generator = np.random.default_rng(1)
    controls = generator.normal(size=(600, 1)) + 0.2 * generator.normal(size=(600, 20))
    attacks = 2.2 + generator.normal(size=(2000, 1)) + 0.2 * generator.normal(size=(2000, 20))
    new = generator.normal(size=(20_000, 1)) + 0.2 * generator.normal(size=(20_000, 20))
    scaling = np.arange(600) < 200
    joint = fuse(controls, np.arange(600), scaling=scaling, fpr=0.05)
    own = [conformal_threshold(column, np.arange(400), fpr=0.05 / 20) for column in controls[~scaling].T]
    assert (new > own).any(axis=1).mean() < joint.flags(new).mean() < 0.075
    assert joint.flags(attacks).mean() > (attacks > own).any(axis=1).mean() + 0.2
    assert joint.record()["bonferroni_groups"] == 400
    with pytest.raises(InputError, match="needs 400 control groups"):
        conformal_threshold(controls[:399, 0], np.arange(399), fpr=0.05 / 20)


def test_with_confidence_nearly_every_fusion_holds() -> None:
    generator = np.random.default_rng(2)
    held = []
    for _ in range(200):
        fusion = fuse(
            generator.normal(size=(120, 5)),
            np.arange(120),
            scaling=np.arange(120) < 50,
            fpr=0.05,
            guarantee="conditional",
        )
        centre, spread = fusion.reference
        held.append(1 - np.prod(stats.norm.cdf(centre + fusion.threshold * spread)) <= 0.05)
    assert stats.binom.cdf(sum(held), 200, 0.95) > 0.01
    assert not all(held)


def test_units_by_hand() -> None:
    scores = np.array([[0.0, 10.0], [1.0, 10.5], [2.0, 12.0], [4.0, 13.0], [9.0, 90.0]])
    rows = np.concatenate([scores, np.random.default_rng(3).normal(size=(20, 2)) / 100])
    scaling = np.arange(25) < 5
    ranked = fuse(rows, np.arange(25), scaling=scaling, fpr=0.2, unit="rank")
    # of 5 scaling rows how many score as high or higher, and itself: of 6
    within = ranked.in_units(np.array([[0.0, 13.0], [3.0, 9.5]]))
    np.testing.assert_allclose(within, -np.log10([[6 / 6, 3 / 6], [3 / 6, 6 / 6]]))
    np.testing.assert_allclose(ranked.in_units(np.array([[9.0, 129.0]])), [[np.log10(3), np.log10(6) + 39 / 78]])
    measured = fuse(rows, np.arange(25), scaling=scaling, fpr=0.2)
    np.testing.assert_allclose(measured.in_units(np.array([[4.0, 12.0]])), [[2 / (2 * 1.482602218505602), 0]])
    assert measured.fused(np.array([[4.0, 12.0]])) == pytest.approx(1 / 1.482602218505602)


def test_what_would_not_hold_is_refused() -> None:
    rows, groups = np.random.default_rng(4).normal(size=(60, 3)), np.arange(60)
    half = groups < 30
    with pytest.raises(InputError, match="whole groups"):
        fuse(rows, groups // 4, scaling=half, fpr=0.1)
    for side in (np.zeros(60, bool), np.ones(60, bool)):
        with pytest.raises(InputError, match="leave some"):
            fuse(rows, groups, scaling=side, fpr=0.1)
    with pytest.raises(InputError, match="needs 100 control groups, there are 30"):
        fuse(rows, groups, scaling=half, fpr=0.01)
    with pytest.raises(InputError, match="takes 59 control groups, there are 30"):
        fuse(rows, groups, scaling=half, fpr=0.05, guarantee="conditional")
    with pytest.raises(InputError, match="detector 1 is above the median"):
        fuse(rows * [1, 0, 1], groups, scaling=half, fpr=0.1, unit="rank")
    with pytest.raises(InputError, match="columns 1"):
        fuse(rows * [1, 0, 1], groups, scaling=half, fpr=0.1)
    with pytest.raises(InputError, match="not minmax"):
        fuse(rows, groups, scaling=half, fpr=0.1, unit="minmax")
    fusion = fuse(rows, groups, scaling=half, fpr=0.1)
    with pytest.raises(InputError, match="2 detectors, the threshold is for 3"):
        fusion.flags(rows[:, :2])
    with pytest.raises(InputError, match="a column for each detector"):
        fusion.flags(rows[:, 0])
    rows[0, 1] = np.nan
    with pytest.raises(InputError, match="1 of 60 rows"):
        fusion.flags(rows)
