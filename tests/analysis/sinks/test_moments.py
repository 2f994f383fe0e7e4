"""Moments against numpy's two passes in float64, with massive activations, in any order and any cut."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.sinks import Moments, MomentsSink, second_moments_bytes
from analysis.sinks.label_cells import cells_of, fold_of, label_values
from store import InputError, PromptSet
from tests.analysis.sinks.batches import feed, shuffled_batches

WIDTH, FOLDS = 12, 3
# Folds of the groups g0, g1, … g19 among five.
PINNED = [2, 2, 4, 0, 4, 2, 1, 0, 1, 3, 3, 0, 3, 4, 0, 3, 1, 0, 0, 2]


def prompts_of(count: int) -> PromptSet:
    """Three label values and, for every seventh prompt, none; groups of three."""
    kinds = ["red", "green", "blue"]
    return PromptSet.from_rows(
        [
            {
                "text": f"prompt {row}",
                "group": f"g{row // 3}",
                "kind": None if row % 7 == 6 else kinds[row % 3],
                "flag": row % 2 == 0,
                "level": row % 4,
            }
            for row in range(count)
        ]
    )


def massive_rows(prompts: int, seed: int = 0, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Rows with one dimension a thousand times the rest and another with a mean a hundred thousand times its spread."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(prompts), rng.integers(1, 9, prompts))
    rows = rng.standard_normal((len(owner), WIDTH)) + rng.standard_normal(WIDTH)
    rows[:, 3] *= 1000
    rows[:, 5] += 1e5
    rows[:, 7] = 0.25
    return rows.astype(dtype), owner


def expected(rows: np.ndarray, cell: np.ndarray, cells: int) -> tuple[np.ndarray, ...]:
    """Count, mean, variance and covariance of each cell, by two passes."""
    wide = rows.astype(np.float64)
    parts = [wide[cell == number] for number in range(cells)]
    none = np.full(WIDTH, np.nan)
    return (
        np.array([len(part) for part in parts]),
        np.stack([part.mean(0) if len(part) else none for part in parts]),
        np.stack([part.var(0) if len(part) else none for part in parts]),
        np.stack([np.cov(part.T, bias=True) if len(part) else np.outer(none, none) for part in parts]),
    )


@pytest.mark.parametrize("block_bytes", [64 << 20, 8 * WIDTH * 5, 1])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_the_sink_equals_two_passes(size: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.sinks.moments_sink.BLOCK_BYTES", block_bytes)
    prompts = prompts_of(60)
    rows, owner = massive_rows(60)
    (sink,) = MomentsSink.of(prompts, sites=["resid_post.1"], label="kind", folds=FOLDS, second_moments=True)
    assert sink.values == ("blue", "green", "red")
    found = feed(sink, prompts, rows, owner, shuffled_batches(60, size, seed=size))
    cell = cells_of(prompts.table, label="kind", values=sink.values, folds=FOLDS)[owner]
    assert (cell == -1).any()
    count, mean, variance, covariance = expected(rows, cell, 3 * FOLDS)
    np.testing.assert_array_equal(found["moments-count.resid_post.1"].reshape(-1), count)
    values = found["moments.resid_post.1"]
    assert values.shape == (3, FOLDS, 2, WIDTH)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values[:, :, 0].reshape(-1, WIDTH), mean, rtol=1e-13)
    np.testing.assert_allclose(values[:, :, 1].reshape(-1, WIDTH), variance, rtol=1e-10, atol=1e-18)
    spread = np.sqrt(variance[:, :, None] * variance[:, None, :]) + 1e-12
    got = found["moments-covariance.resid_post.1"].reshape(-1, WIDTH, WIDTH)
    np.testing.assert_allclose(got / spread, covariance / spread, atol=1e-10)


def test_a_row_that_is_not_finite_spoils_its_own_cell_alone() -> None:
    prompts = prompts_of(30)
    rows, owner = massive_rows(30)
    (sink,) = MomentsSink.of(prompts, sites=["resid_post.1"], label="kind", folds=FOLDS, second_moments=True)
    cell = cells_of(prompts.table, label="kind", values=sink.values, folds=FOLDS)[owner]
    bad = int(np.flatnonzero(cell >= 0)[4])
    rows[bad, 2] = np.inf
    rows[np.flatnonzero(cell == -1)[0]] = np.nan
    found = feed(sink, prompts, rows, owner, shuffled_batches(30, 8, seed=0))["moments.resid_post.1"]
    count = np.bincount(cell[cell >= 0], minlength=3 * FOLDS)
    spoiled = ~np.isfinite(found.reshape(3 * FOLDS, -1)).all(axis=1)
    assert spoiled.tolist() == [n == 0 or place == cell[bad] for place, n in enumerate(count)]


def random_moments(seed: int, *, values: int = 2, folds: int = 2) -> tuple[Moments, np.ndarray, np.ndarray]:
    """Moments of random rows by numpy, the rows and their cells; some cells may be empty."""
    rows, _ = massive_rows(4, seed=seed, dtype=np.float64)
    cell = np.random.default_rng(seed).integers(0, values * folds, len(rows)) // (1 + seed % 2)
    count, mean, variance, covariance = expected(rows, cell, values * folds)
    moments = Moments(
        label="kind",
        values=("a", "b"),
        count=count.reshape(values, folds),
        mean=mean.reshape(values, folds, WIDTH),
        variance=variance.reshape(values, folds, WIDTH),
        covariance=covariance.reshape(values, folds, WIDTH, WIDTH),
    )
    return moments, rows, cell


def assert_same(one: Moments, other: Moments) -> None:
    np.testing.assert_array_equal(one.count, other.count)
    # A mean near zero is a sum of terms as large as the rows: its error is relative to them.
    size = np.maximum(np.abs(other.mean) + np.sqrt(other.variance), 1e-300)
    np.testing.assert_allclose(one.mean / size, other.mean / size, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-9, atol=1e-12)
    assert one.covariance is not None
    assert other.covariance is not None
    deviation = np.sqrt(np.maximum(one.variance, 1e-12))
    scale = deviation[..., :, None] * deviation[..., None, :]
    np.testing.assert_allclose(one.covariance / scale, other.covariance / scale, atol=1e-9)


@settings(max_examples=60, deadline=None)
@example([1, 3598, 1458])
@given(st.lists(st.integers(0, 10_000), min_size=3, max_size=3))
def test_merging_is_associative_commutative_and_the_union(seeds: list[int]) -> None:
    (a, rows_a, cell_a), (b, rows_b, cell_b), (c, rows_c, cell_c) = map(random_moments, seeds)
    whole = expected(np.concatenate([rows_a, rows_b, rows_c]), np.concatenate([cell_a, cell_b, cell_c]), 4)
    count, mean, variance, covariance = (part.reshape(2, 2, *part.shape[1:]) for part in whole)
    union = Moments(label="kind", values=("a", "b"), count=count, mean=mean, variance=variance, covariance=covariance)
    assert_same(a.merge(b).merge(c), union)
    assert_same(a.merge(b.merge(c)), union)
    assert_same(c.merge(a).merge(b), union)


def test_a_fold_held_out_is_the_merge_of_the_others() -> None:
    moments, rows, cell = random_moments(6)
    label, fold = np.divmod(cell, 2)
    count, mean, variance, _ = expected(rows[fold == 1], label[fold == 1], 2)
    rest = moments.without_fold(0)
    np.testing.assert_array_equal(rest.count[:, 0], count)
    np.testing.assert_allclose(rest.mean[:, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(rest.variance[:, 0], variance, rtol=1e-9, atol=1e-12)
    everything = expected(rows, label, 2)
    assert moments.over_folds().covariance is not None
    np.testing.assert_allclose(moments.over_folds().mean[:, 0], everything[1], rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_stays_so_in_its_cell() -> None:
    moments, *_ = random_moments(2)
    mean = moments.mean.copy()
    mean[0, 0, 3] = np.inf
    spoiled = dataclasses.replace(moments, mean=mean, covariance=None)
    merged = spoiled.merge(moments).merge(spoiled)
    assert merged.covariance is None
    assert np.isnan(merged.variance[0, 0, 3])
    assert np.isinf(merged.mean[0, 0, 3])
    assert np.isfinite(merged.variance).sum() == merged.variance.size - 1


def test_other_labels_do_not_merge() -> None:
    moments, *_ = random_moments(1)
    with pytest.raises(InputError, match="do not merge"):
        moments.merge(dataclasses.replace(moments, values=("a", "c")))
    with pytest.raises(InputError, match="do not merge"):
        moments.merge(moments.over_folds())


def test_label_values_of_every_kind() -> None:
    prompts = prompts_of(20)
    assert label_values(prompts, "kind") == ("blue", "green", "red")
    assert label_values(prompts, "flag") == (False, True)
    assert label_values(prompts, "level") == (0, 1, 2, 3)
    cells = cells_of(prompts.table, label="level", values=(0, 1, 2, 3), folds=1)
    np.testing.assert_array_equal(cells, np.arange(20) % 4)


def test_labels_that_cannot_be_used_are_refused() -> None:
    rows = [{"text": f"t{n}", "none": None, "many": ["a", "b"], "id": n} for n in range(1200)]
    prompts = PromptSet.from_rows([*rows, {"text": "x", "none": None, "many": ["a"], "id": 1}])
    for label, reason in (("missing", "no column"), ("many", "one value a prompt"), ("id", "1,200 values")):
        with pytest.raises(InputError, match=reason):
            label_values(prompts, label)
    with pytest.raises(InputError, match="no value"):
        label_values(prompts, "none")
    with pytest.raises(InputError, match="'0' has kind='red'"):
        cells_of(prompts_of(9).table, label="kind", values=("blue", "green"), folds=2)


def test_folds_follow_the_group_and_stay_what_they_are() -> None:
    """The folds are part of what is on disk: these numbers never change."""
    prompts = prompts_of(60)
    folds = fold_of(prompts.table, 5)
    assert folds[::3].tolist() == PINNED
    assert (folds.reshape(-1, 3) == folds[::3, None]).all()
    np.testing.assert_array_equal(fold_of(prompts.table.slice(21, 9), 5), folds[21:30])
    alone = PromptSet.from_rows([{"text": "same", "prompt_id": "a"}, {"text": "same", "prompt_id": "b"}])
    assert len(set(fold_of(alone.table, 1000).tolist())) == 1
    spread = fold_of(PromptSet.from_rows([{"text": f"t{n}"} for n in range(500)]).table, 5)
    assert np.bincount(spread).min() > 60


def test_the_size_is_told_beforehand() -> None:
    assert second_moments_bytes(width=8192, values=1, folds=1) == 512 << 20
    prompts = prompts_of(12)
    rows, owner = massive_rows(12)
    (sink,) = MomentsSink.of(prompts, sites=["resid_post.1"], label="flag", folds=4, second_moments=True)
    found = feed(sink, prompts, rows, owner, [list(range(12))])
    assert found["moments-covariance.resid_post.1"].nbytes == second_moments_bytes(width=WIDTH, values=2, folds=4)


def test_settings_tell_all_that_decides_the_numbers() -> None:
    plain = MomentsSink(site="resid_post.1", label="kind", values=("a", "b"))
    for change in ({"label": "flag"}, {"values": ("a", "b", "c")}, {"folds": 4}):
        assert dataclasses.replace(plain, **change).settings() != plain.settings()
    more = dataclasses.replace(plain, second_moments=True)
    assert more.settings() == plain.settings()
    assert set(more.columns) - set(plain.columns) == {"moments-covariance.resid_post.1"}
    with pytest.raises(InputError, match="at least 1"):
        dataclasses.replace(plain, folds=0)
