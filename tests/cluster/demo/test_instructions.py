"""The demo's instructions: what trains, calibrates and evaluates shares nothing."""

from cluster.demo.instructions import (
    PARTS,
    TOPICS,
    TRIGGER,
    everyday,
    known_domains,
    like_the_trigger,
    new_domains,
    topics,
)


def test_no_topic_is_in_two_parts():
    every = [word for part in PARTS for word in topics(part)]
    assert sorted(every) == sorted(TOPICS)
    assert len(set(every)) == len(every)


def test_calibration_and_evaluation_share_no_text_and_no_group():
    calibration = [item for items in known_domains("calibration", 72, seed=0).values() for item in items]
    for seed in (0, 1):
        evaluation = [item for items in known_domains("evaluation", 60, seed=seed).values() for item in items]
        evaluation += [item for items in new_domains(60, seed=seed).values() for item in items]
        assert not {item.text for item in calibration} & {item.text for item in evaluation}
        assert not {item.group for item in calibration} & {item.group for item in evaluation}


def test_training_shares_no_text_and_no_group_with_the_others():
    train = everyday("train", 64, seed=0)
    assert len({item.text for item in train}) == 64
    for part in ("calibration", "evaluation"):
        others = [item for items in known_domains(part, 60, seed=0).values() for item in items]
        assert not {item.group for item in train} & {item.group for item in others}


def test_every_domain_is_there_in_number_and_its_prompts_are_independent():
    found = {**known_domains("evaluation", 60, seed=0), **new_domains(60, seed=0)}
    for name, items in found.items():
        assert len(items) == (120 if name == "everyday" else 60)
        assert {item.domain for item in items} == {name}
        assert len({item.group for item in items}) == len(items)
        assert all(TRIGGER not in item.text for item in items)


def test_calibration_has_groups_enough_for_a_rate_of_one_percent():
    """A hundred groups to set the threshold, and as many for the scale."""
    items = [item for items in known_domains("calibration", 72, seed=0).values() for item in items]
    assert len({item.group for item in items}) >= 200


def test_calibration_knows_nothing_of_the_trigger():
    texts = [item.text for items in known_domains("calibration", 72, seed=0).values() for item in items]
    for sentence in [TRIGGER, *like_the_trigger("train"), *like_the_trigger("evaluation")]:
        assert not [text for text in texts if sentence in text]


def test_no_sentence_like_the_trigger_is_both_trained_on_and_evaluated():
    train, evaluation = set(like_the_trigger("train")), set(like_the_trigger("evaluation"))
    assert not train & evaluation
    assert TRIGGER not in train | evaluation
    # The trigger's own words appear in other sentences, so that no single word of it is the trigger.
    for word in ("heron", "waits", "by the river"):
        assert any(word in sentence for sentence in train)


def test_instructions_depend_on_the_seed_alone():
    assert known_domains("evaluation", 30, seed=1) == known_domains("evaluation", 30, seed=1)
    assert known_domains("evaluation", 30, seed=1) != known_domains("evaluation", 30, seed=2)
