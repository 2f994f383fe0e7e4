"""Robust estimates against hand and scikit-learn, and what they bear: bounded below the breakdown, lost beyond it."""

import numpy as np
import pytest
from sklearn.covariance import MinCovDet

from analysis.statistics.robust import covariance_determinant, median_mad, trimmed_mean
from store.errors import InputError

FAR = 1e10


def contaminated(rows: np.ndarray, bad: int) -> np.ndarray:
    """With the first `bad` rows in a tight cluster far away."""
    made = rows.copy()
    made[:bad] = FAR + rows[:bad] / 100
    return made


def test_values_by_hand() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 100.0])
    centre, spread = median_mad(values)
    assert centre == 4.0
    assert spread == pytest.approx(3 * 1.482602218505602)  # deviations 3, 2, 0, 4, 96
    assert trimmed_mean(values, share=0.2) == pytest.approx(14 / 3)
    assert trimmed_mean(values, share=0.0) == pytest.approx(values.mean())
    both = np.stack([values, -values], axis=1)
    np.testing.assert_allclose(median_mad(both)[0], [4, -4])
    np.testing.assert_allclose(trimmed_mean(both, share=0.39), [14 / 3, -14 / 3])


@pytest.mark.parametrize("rows", [100, 101])
def test_median_and_mad_bear_fewer_than_half(rows: int) -> None:
    values = np.random.default_rng(rows).normal(size=rows)
    most = (rows - 1) // 2
    centre, spread = median_mad(contaminated(values, most))
    assert abs(centre) < 4
    assert spread < 10
    assert median_mad(contaminated(values, most + 1))[0] > FAR / 3
    # a deviation breaks down towards 0 too
    stuck = np.r_[np.zeros(rows // 2 + 1), values[rows // 2 + 1 :]]
    with pytest.raises(InputError, match="half of the values are equal"):
        median_mad(stuck)


@pytest.mark.parametrize(("share", "rows"), [(0.0, 50), (0.1, 59), (0.25, 100), (0.49, 100)])
def test_the_trimmed_mean_bears_what_it_trims(share: float, rows: int) -> None:
    values = np.random.default_rng(1).normal(size=rows)
    most = int(share * rows)
    assert abs(trimmed_mean(contaminated(values, most), share=share)) < 4
    assert trimmed_mean(contaminated(values, most + 1), share=share) > FAR / rows / 2


@pytest.mark.parametrize(("rows", "width"), [(60, 1), (60, 2), (61, 2), (200, 5), (150, 10)])
def test_the_determinant_bears_nearly_half(rows: int, width: int) -> None:
    clean = np.random.default_rng(width).normal(size=(rows, width))
    most = covariance_determinant(clean).tolerated
    assert most == rows - int(np.ceil((rows + width + 1) / 2))
    found = covariance_determinant(contaminated(clean, most))
    assert np.abs(found.location).max() < 1.5
    assert np.linalg.eigvalsh(found.covariance)[0] > 0.05
    assert np.linalg.eigvalsh(found.covariance)[-1] < 20
    assert not found.kept[:most].any()
    assert found.distances(contaminated(clean, most))[:most].min() > 1e15
    # a half that is of the cluster alone; between the two it depends on where the rows are put
    lost = covariance_determinant(contaminated(clean, rows - most))
    assert np.abs(lost.location).max() > FAR / rows


@pytest.mark.filterwarnings("ignore:Determinant has increased")
def test_a_far_cluster_of_forty_percent_takes_the_library_alone_with_it() -> None:
    """Which is why its search is not the only one."""
    rows = np.random.default_rng(6).normal(size=(150, 10))
    rows[:60] += 1e6
    assert MinCovDet(random_state=0).fit(rows).location_.min() > 1e5
    assert np.abs(covariance_determinant(rows).location).max() < 1


def test_outliers_that_no_column_shows_are_found() -> None:
    """Near the median in each, and far across the ridge on which the others lie: the library's search is needed."""
    generator = np.random.default_rng(7)
    rows = generator.normal(size=(200, 1)) + 0.1 * generator.normal(size=(200, 5))
    rows[:40] = 0.1 * generator.normal(size=(40, 5)) + 0.6 * np.array([1, -1, 1, -1, 1])
    assert not covariance_determinant(rows).kept[:40].any()


def test_of_normal_rows_it_is_the_covariance() -> None:
    generator = np.random.default_rng(3)
    mixing = generator.normal(size=(4, 4)) * [1, 10, 1e3, 1e-3]  # one column far larger than the rest
    found = covariance_determinant(generator.normal(size=(500, 4)) @ mixing + 5)
    whitened = np.linalg.inv(mixing).T @ found.covariance @ np.linalg.inv(mixing)
    np.testing.assert_allclose(whitened, np.eye(4), atol=0.3)
    assert np.abs((found.location - 5) @ np.linalg.inv(mixing)).max() < 0.2
    assert 0.95 < found.kept.mean() < 0.995


def test_no_half_is_closer_than_the_library_finds_and_the_map_of_rows_does_not_matter() -> None:
    generator = np.random.default_rng(4)
    clean = generator.normal(size=(90, 3))
    clean[:15] += 6
    reference = MinCovDet(random_state=0).fit(clean)
    found = covariance_determinant(clean)
    assert not found.kept[:15].any()
    np.testing.assert_allclose(found.location, reference.location_, atol=0.1)
    np.testing.assert_allclose(found.covariance, reference.covariance_, atol=0.5)
    np.testing.assert_allclose(found.location, clean[found.kept].mean(axis=0))
    moved = covariance_determinant(clean * [1e-6, 1.0, 1e6] + 7)
    np.testing.assert_array_equal(moved.kept, found.kept)
    np.testing.assert_allclose(moved.location, found.location * [1e-6, 1.0, 1e6] + 7)


def test_what_has_no_scatter_is_refused() -> None:
    rows = np.random.default_rng(5).normal(size=(40, 3))
    with pytest.raises(InputError, match="takes 15 rows, there are 14"):
        covariance_determinant(rows[:14])
    dependent = np.c_[rows, rows[:, 0] - 2 * rows[:, 1]]
    with pytest.raises(InputError, match="fewer than 4 dimensions"):
        covariance_determinant(dependent)
    copies = rows.copy()
    copies[:30, 1] = copies[:30, 0]  # most rows in a plane, though all columns move
    with pytest.raises(InputError, match="fewer than 3 dimensions"):
        covariance_determinant(copies)
    with pytest.raises(InputError, match="columns 1"):
        covariance_determinant(rows * [1, 0, 1])
    for bad in (np.nan, np.inf):
        rows[3, 1] = bad
        with pytest.raises(InputError, match="1 of 120 values are NaN or infinite"):
            covariance_determinant(rows)
    with pytest.raises(InputError, match="no values"):
        median_mad(np.zeros(0))
    with pytest.raises(InputError, match="below 0.5"):
        trimmed_mean(np.arange(3.0), share=0.5)
