"""Cascades against both detectors alone, their level and their choice on new groups, and the hull against scipy's."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from analysis.statistics.cascade import CascadeFrontier, Costs, cascade_frontier
from analysis.statistics.conformal import conformal_threshold
from store.errors import InputError

COSTS = Costs(cheap=1.0, judge=100.0)


def study(
    generator: np.random.Generator, groups: int, *, rows: int = 2, judge: float = 3.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cheap and judge's scores, labels and groups: groups of one label, whose rows stand together."""
    group = np.repeat(np.arange(groups), rows)
    labels = group % 2 == 1
    shared = generator.normal(size=groups)[group]
    cheap = shared + generator.normal(size=len(group)) + 2.0 * labels
    return cheap, shared / 2 + generator.normal(size=len(group)) + judge * labels, labels, group


def measured(frontier: CascadeFrontier, name: str) -> list[tuple[float, float, float]]:
    """Share of controls sent, recall, realised rate of the points of one name, by rising share."""
    figures = []
    for point in frontier.points:
        if point.name == name:
            assert point.point.recall is not None
            assert point.point.realised_fpr is not None
            figures.append((point.sent.value, point.point.recall.value, point.point.realised_fpr.value))
    return sorted(figures)


def test_what_is_reported_is_what_counting_on_the_other_groups_gives() -> None:
    cheap, judge, labels, group = study(np.random.default_rng(0), 600)
    calibration = group < 300
    costs = Costs(cheap=1.0, judge=100.0, prevalence=0.25)
    frontier = cascade_frontier(cheap, judge, labels, group, calibration=calibration, fpr=0.05, costs=costs)
    assert [point.name for point in frontier.points].count("cascade") == 6
    controls = calibration & ~labels
    for point in frontier.points:
        rest, cut = ~calibration, point.cheap_threshold
        if point.name == "cheap alone":
            expected = conformal_threshold(cheap[controls], group[controls], fpr=0.05)
            flagged, sent = cheap > expected, np.zeros(len(cheap), bool)
        elif point.name == "judge alone":
            expected = conformal_threshold(judge[controls], group[controls], fpr=0.05)
            flagged, sent = judge > expected, np.ones(len(cheap), bool)
        else:
            expected, sent = point.threshold, cheap > cut
            flagged = sent & (judge > point.threshold)
        assert point.threshold == expected
        assert point.point.recall is not None
        assert point.point.realised_fpr is not None
        assert point.point.recall.value == flagged[rest & labels].mean()
        assert point.point.realised_fpr.value == flagged[rest & ~labels].mean()
        assert point.sent.value == sent[rest & ~labels].mean()
        assert point.sent_positives.value == sent[rest & labels].mean()
        paid = 100 * (0.75 * point.sent.value + 0.25 * point.sent_positives.value)
        assert point.cost == pytest.approx(paid + (point.name != "judge alone"))
        assert point.calibration[1] == flagged[calibration & labels].mean()
        assert set(point.record()) >= {"name", "cost", "calibration", "value", "realised_fpr", "sent"}


def test_a_good_judge_is_had_for_a_fraction_of_its_cost() -> None:
    cheap, judge, labels, group = study(np.random.default_rng(1), 4000)
    frontier = cascade_frontier(
        cheap, judge, labels, group, calibration=group < 2000, fpr=0.01, costs=COSTS, resamples=200
    )
    (alone,), (first,) = measured(frontier, "judge alone"), measured(frontier, "cheap alone")
    chosen = frontier.within(40.0)
    assert chosen.name == "cascade"
    assert chosen.cost < 45
    assert chosen.point.recall is not None
    assert chosen.point.recall.low > first[1] + 0.3
    assert chosen.point.recall.value > 0.9 * alone[1]
    recalls = [frontier.points[number].calibration for number in frontier.frontier]
    assert recalls == sorted(recalls)
    with pytest.raises(InputError, match="the cheapest costs 1"):
        frontier.within(0.5)


@pytest.mark.parametrize("rows", [1, 3])
def test_every_cascade_holds_the_level_for_new_groups(rows: int) -> None:
    """With few control groups, where a threshold that knows its rows too well shows."""
    generator = np.random.default_rng(rows)
    rates = []
    for _ in range(100):
        cheap, judge, labels, group = study(generator, 240, rows=rows)
        calibration = group < 80
        frontier = cascade_frontier(
            cheap,
            judge,
            labels,
            group,
            calibration=calibration,
            fpr=0.1,
            costs=COSTS,
            shares=(0.1, 0.15, 0.3),
            resamples=2,
        )
        rates.append([rate for _, _, rate in measured(frontier, "cascade")])
    error = np.std(rates, axis=0) / len(rates) ** 0.5
    assert (np.mean(rates, axis=0) < 0.1 + 2.5 * error).all()
    assert (np.mean(rates, axis=0) > 0.02).all()


def test_a_choice_looks_better_where_it_was_made() -> None:
    """Scores that know nothing: the best of many promises more than it gives, and its false alarms exceed the level."""
    generator = np.random.default_rng(4)
    gained, rates = [], []
    for _ in range(100):
        _, _, labels, group = study(generator, 200, rows=1)
        scores = generator.normal(size=(2, 200))
        frontier = cascade_frontier(*scores, labels, group, calibration=group < 80, fpr=0.1, costs=COSTS, resamples=2)
        chosen = frontier.within(np.inf)
        assert chosen.point.recall is not None
        assert chosen.point.realised_fpr is not None
        gained.append(chosen.calibration[1] - chosen.point.recall.value)
        rates.append(chosen.point.realised_fpr.value)
    assert np.mean(gained) > 2 * np.std(gained) / 10
    assert np.mean(rates) > 0.1


def test_the_frontier_is_the_upper_hull() -> None:
    cheap, judge, labels, group = study(np.random.default_rng(5), 800, judge=1.5)
    shares = tuple(np.linspace(0.01, 0.9, 25))
    frontier = cascade_frontier(
        cheap, judge, labels, group, calibration=group < 400, fpr=0.05, costs=COSTS, shares=shares, resamples=2
    )
    points = np.array([point.calibration for point in frontier.points])
    best = int(np.flatnonzero(points[:, 1] == points[:, 1].max())[0])
    corners = np.r_[points[: best + 1], [[points[best, 0], -1.0], [points[0, 0], -1.0]]]
    vertices = {int(v) for v in ConvexHull(corners).vertices if v <= best}
    assert set(frontier.frontier) == vertices
    assert 2 < len(vertices) < len(points)


def test_what_says_nothing_is_refused() -> None:
    cheap, judge, labels, group = study(np.random.default_rng(6), 80)
    half = group < 40

    def run(**changed: object) -> CascadeFrontier:
        given = {"cheap": cheap, "judge": judge, "labels": labels, "groups": group, "calibration": half, "fpr": 0.1}
        return cascade_frontier(**{**given, "costs": COSTS, "resamples": 2, **changed})  # type: ignore[arg-type]

    run()
    with pytest.raises(InputError, match="whole groups"):
        run(calibration=np.arange(160) < 41)
    with pytest.raises(InputError, match="needs 100 control groups, there are 20"):
        run(fpr=0.01)
    with pytest.raises(InputError, match="the calibration rows have one"):
        run(labels=labels & ~half)
    with pytest.raises(InputError, match="the measured rows have one"):
        run(labels=labels | ~half)
    with pytest.raises(InputError, match="1 of 160 judge scores"):
        run(judge=np.r_[np.nan, judge[1:]])
    for shares in ((), (0.0,), (1.0, 0.5)):
        with pytest.raises(InputError, match="shares to send on"):
            run(shares=shares)
    for wrong in ({"cheap": -1.0, "judge": 1.0}, {"cheap": 0.0, "judge": np.inf}):
        with pytest.raises(InputError, match="costs"):
            Costs(**wrong)
    with pytest.raises(InputError, match="prevalence"):
        Costs(cheap=0.0, judge=1.0, prevalence=1.1)
