"""Transcripts against counting by hand, and thresholds that hold for them where a turn's does not."""

import numpy as np
import pytest

from analysis.statistics.conformal import conformal_threshold
from analysis.statistics.proportion import clopper_pearson
from analysis.statistics.turns import recall_of_transcripts, transcript_scores, turn_curve
from store.errors import InputError


def conversations(
    generator: np.random.Generator, groups: int, *, each: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn scores, the turns' transcripts and the transcripts' groups: 1 to 15 turns that depend on one another."""
    group = np.repeat(np.arange(groups), each)
    sizes = generator.integers(1, 16, len(group))
    owner = generator.permutation(np.repeat(np.arange(len(group)), sizes))
    scores = generator.normal(size=len(owner)) + 0.7 * generator.normal(size=len(group))[owner]
    return scores + 0.7 * generator.normal(size=groups)[group[owner]], owner, group


def test_the_curve_is_what_counting_gives() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 3 == 0
    owner = np.r_[np.arange(40), generator.integers(0, 40, 160)]
    scores = generator.integers(0, 12, 200) + 3.0 * labels[owner]
    curve = turn_curve(scores, owner, labels)
    assert curve.threshold[0] == np.inf
    assert (curve.turn_fpr[-1], curve.transcript_fpr[-1], curve.transcript_tpr[-1]) == (1, 1, 1)
    for at, turn, control, positive in zip(
        curve.threshold, curve.turn_fpr, curve.transcript_fpr, curve.transcript_tpr, strict=True
    ):
        hit = np.array([any(scores[i] >= at for i in np.flatnonzero(owner == number)) for number in range(40)])
        expected = np.mean(scores[~labels[owner]] >= at), hit[~labels].mean(), hit[labels].mean()
        assert (turn, control, positive) == pytest.approx(expected)


def test_a_threshold_for_turns_exceeds_the_level_for_transcripts_and_one_for_transcripts_holds_it() -> None:
    generator = np.random.default_rng(1)
    of_turns, of_transcripts = [], []
    for _ in range(1500):
        scores, owner, group = conversations(generator, 41)
        largest = transcript_scores(scores, owner, count=len(group))
        known, new = (group < 40)[owner], group == 40
        naive = conformal_threshold(scores[known], group[owner[known]], fpr=0.1)
        right = conformal_threshold(largest[~new], group[~new], fpr=0.1)
        of_turns.append(np.mean(largest[new] > naive))
        of_transcripts.append(np.mean(largest[new] > right))
    error = np.std(of_transcripts) / len(of_transcripts) ** 0.5
    assert 0.1 - 1 / 41 - 3 * error < np.mean(of_transcripts) < 0.1 + 2 * error
    assert np.mean(of_turns) > 0.25


def test_rates_come_from_other_groups() -> None:
    generator = np.random.default_rng(2)
    scores, owner, group = conversations(generator, 300, each=1)
    labels = generator.random(len(group)) < 0.4
    scores[labels[owner]] += 2.0 * (generator.random(np.count_nonzero(labels[owner])) < 0.3)
    calibration = group < 150
    point = recall_of_transcripts(scores, owner, labels, group, calibration=calibration, fpr=0.05)
    largest = transcript_scores(scores, owner, count=len(group))
    threshold = conformal_threshold(largest[calibration & ~labels], group[calibration & ~labels], fpr=0.05)
    assert point.transcripts.threshold == threshold
    hits = int((largest[~calibration & labels] > threshold).sum())
    trials = int((~calibration & labels).sum())
    recall, rate = point.transcripts.recall, point.turn_fpr
    assert recall is not None
    assert rate is not None
    assert recall.method == "Clopper-Pearson"
    assert (recall.low, recall.high) == pytest.approx(clopper_pearson(hits, trials))
    rows = (~calibration & ~labels)[owner]
    assert rate.value == np.mean(scores[rows] > threshold)
    assert rate.method == "cluster bootstrap"
    assert rate.units == int((~calibration & ~labels).sum())
    assert point.transcripts.realised_fpr is not None
    assert rate.value < point.transcripts.realised_fpr.value
    assert point.record()["turn_fpr"] == rate.record()


def test_what_cannot_be_measured_is_said() -> None:
    scores, owner, group = conversations(np.random.default_rng(3), 60)
    labels = group % 3 == 0
    few = recall_of_transcripts(scores, owner, labels, group, calibration=group < 30, fpr=0.01, noun="chats")
    assert few.turn_fpr is None
    assert "20 control chats" in str(few.record()["reason"])
    assert few.record()["turn_fpr"] is None
    with pytest.raises(InputError, match="whole groups"):
        recall_of_transcripts(scores, owner, labels, group, calibration=np.arange(120) < 31, fpr=0.1)
    with pytest.raises(InputError, match="both classes"):
        turn_curve(scores, owner, np.zeros(120, bool))
    with pytest.raises(InputError, match="1 of 4 transcripts have no turns, number 2 first"):
        transcript_scores(np.arange(4.0), np.array([0, 1, 3, 3]), count=4)
    for wrong in (-1, 4):
        with pytest.raises(InputError, match="there are labels for 4"):
            transcript_scores(np.arange(5.0), np.array([0, 1, 2, 3, wrong]), count=4)
    with pytest.raises(InputError, match="one for each turn"):
        transcript_scores(np.arange(3.0), np.arange(4), count=4)
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="1 of 2 turns"):
            transcript_scores(np.array([0.0, bad]), np.arange(2), count=2)
