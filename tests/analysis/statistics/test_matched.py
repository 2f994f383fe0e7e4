"""Matching against pairs counted one by one, and a detector of length that has nothing left within lengths."""

from itertools import product

import numpy as np
import pytest

from analysis.statistics.matched import match, matched_auroc
from analysis.statistics.proportion import clopper_pearson
from store.errors import InputError


def prompts(generator: np.random.Generator, groups: int, *, signal: float) -> dict[str, np.ndarray]:
    """Groups of two rows with one label; positive ones are longer, and score higher by `signal` at their length."""
    labels = np.repeat(generator.random(groups) < 0.4, 2)
    group = np.repeat(np.arange(groups), 2)
    length = np.exp(0.6 * generator.normal(size=groups)[group] + 0.4 * generator.normal(size=len(group)) + 0.8 * labels)
    own = generator.normal(size=groups)[group] + generator.normal(size=len(group))
    return {"scores": signal * labels + 0.3 * own, "length": length, "labels": labels, "groups": group}


def test_pairs_are_counted_within_strata() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random(120) < 0.3
    scores = generator.integers(0, 6, 120) + labels
    style = generator.choice(["plain", "list", "code"], 120)
    length = generator.integers(1, 40, 120)
    result = matched_auroc(
        scores, labels, np.arange(120), exact={"style": style}, coarsened={"length": length}, bins=4, resamples=50
    )
    edges = np.quantile(length, [0.25, 0.5, 0.75])
    key = [(style[i], int(sum(length[i] >= edge for edge in edges))) for i in range(120)]
    pairs = [(i, j) for i, j in product(np.flatnonzero(labels), np.flatnonzero(~labels)) if key[i] == key[j]]
    wins = np.mean([(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i, j in pairs])
    assert result.matched.value == pytest.approx(wins)
    longer = np.mean([(length[i] > length[j]) + 0.5 * (length[i] == length[j]) for i, j in pairs])
    assert result.residual == {"length": pytest.approx(longer)}
    assert result.positives == len({i for i, _ in pairs}) / labels.sum()
    assert result.negatives == len({j for _, j in pairs}) / (~labels).sum()
    assert result.strata == len({key[i] for i, _ in pairs})
    assert set(result.record()) == {"raw", "matched", "positives_matched", "negatives_matched", "strata", "residual"}


def test_a_detector_of_length_has_nothing_left_and_a_real_one_keeps_what_it_has() -> None:
    generator = np.random.default_rng(1)
    left, kept, covered = [], [], 0
    for study in range(40):
        drawn = prompts(generator, 300, signal=0.3)
        labels, groups, length = drawn["labels"], drawn["groups"], drawn["length"]
        given = {"coarsened": {"length": length}, "bins": 30}
        only_length = matched_auroc(np.sqrt(length), labels, groups, resamples=2, **given)
        assert only_length.raw.value > 0.68
        assert only_length.matched.value == only_length.residual["length"]
        left.append(only_length.matched.value)
        real = matched_auroc(drawn["scores"], labels, groups, resamples=2, **given)
        assert real.positives > 0.8
        kept.append(real.matched.value - real.raw.value)
        useless = matched_auroc(drawn["scores"] - 0.3 * labels, labels, groups, resamples=200, seed=study, **given)
        covered += useless.matched.low <= 0.5 <= useless.matched.high
    assert abs(np.mean(left) - 0.5) < 0.02
    assert abs(np.mean(kept)) < 0.02  # its signal is the same at every length
    assert covered >= 40 * 0.95 - 3 * np.sqrt(40 * 0.95 * 0.05)


def test_bins_that_are_too_coarse_are_shown_by_what_length_keeps() -> None:
    drawn = prompts(np.random.default_rng(2), 2000, signal=0.0)
    given = {"labels": drawn["labels"], "groups": drawn["groups"], "coarsened": {"length": drawn["length"]}}
    residual = [
        matched_auroc(drawn["length"], bins=bins, resamples=2, **given).residual["length"] for bins in (2, 5, 50)
    ]
    assert residual[0] > 0.6 > residual[1] > 0.53 > residual[2]


def test_a_perfect_detector_is_known_by_its_independent_pairs() -> None:
    """Two strata that each hold one row of one class: 50 × 1 and 1 × 50 rows are two pairs, not 51."""
    labels = np.r_[np.ones(50), 0, np.zeros(50), 1, np.ones(9), np.zeros(9)].astype(bool)
    where = np.r_[np.zeros(51), np.ones(51), np.full(18, 2)].astype(int)
    result = matched_auroc(labels.astype(float), labels, np.arange(120), exact={"where": where})
    assert result.matched.value == 1
    assert result.matched.low == pytest.approx(clopper_pearson(11, 11)[0])
    assert result.matched.caveat is not None
    assert (result.positives, result.negatives) == (1, 1)


def test_too_little_overlap_is_refused() -> None:
    generator = np.random.default_rng(3)
    labels = np.arange(200) % 2 == 0
    scores, length = generator.normal(size=200), generator.random(200) + labels
    for apart in ({"coarsened": {"length": length}}, {"exact": {"source": labels}}):
        with pytest.raises(InputError, match=r"0 independent pairs of prompts match, 10 .*0 % of positive"):
            matched_auroc(scores, labels, np.arange(200), noun="prompts", **apart)
    few = np.where(np.arange(200) < 18, 2, labels)
    with pytest.raises(InputError, match=r"9 independent pairs .*9 % of positive"):
        matched_auroc(scores, labels, np.arange(200), exact={"source": few})
    one_group = np.r_[np.zeros(100), np.arange(1, 101)]  # many rows, and one group of them
    with pytest.raises(InputError, match="1 independent pairs"):
        matched_auroc(scores, np.arange(200) < 100, one_group, exact={"source": np.zeros(200, int)})


def test_what_cannot_be_matched_is_refused() -> None:
    labels = np.arange(40) % 2 == 0
    with pytest.raises(InputError, match="nothing to match on"):
        match(labels)
    with pytest.raises(InputError, match="both classes"):
        match(np.ones(40, bool), exact={"style": labels})
    with pytest.raises(InputError, match=r"covariate length has the shape \(39,\)"):
        match(labels, coarsened={"length": np.arange(39)})
    with pytest.raises(InputError, match="covariate length is NaN"):
        match(labels, coarsened={"length": np.r_[np.nan, np.arange(39)]})
    with pytest.raises(InputError, match="1 bins"):
        match(labels, coarsened={"length": np.arange(40)}, bins=1)
    with pytest.raises(InputError, match="scores are NaN"):
        matched_auroc(np.full(40, np.nan), labels, np.arange(40), exact={"style": np.zeros(40, int)})
