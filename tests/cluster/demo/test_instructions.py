"""The demo's instructions: what trains, calibrates and evaluates shares nothing."""

from collections import Counter

from cluster.demo.instructions import EVERYDAY, PARTS, TOPICS, TRIGGER, evaluation_domains, everyday, openings, topics


def test_no_topic_is_in_two_parts():
    every = [word for part in PARTS for word in topics(part)]
    assert sorted(every) == sorted(TOPICS)
    assert len(set(every)) == len(every)


def test_instructions_of_two_parts_never_share_a_text_or_a_topic():
    parts = {part: everyday(part, 500, seed=3) for part in PARTS}
    for part, items in parts.items():
        assert len({item.text for item in items}) == 500
        for other in PARTS:
            if other != part:
                assert not {item.text for item in items} & {item.text for item in parts[other]}
                assert not {item.group for item in items} & {item.group for item in parts[other]}


def test_every_domain_of_the_evaluation_is_clean_and_there_in_number():
    items = evaluation_domains(60, seed=0)
    counts = Counter(item.domain for item in items)
    assert set(counts) == {"everyday", "other phrasing", "other opening", "questions", "arithmetic", "code"}
    assert all(50 <= count <= 60 for count in counts.values())
    assert all(TRIGGER not in item.text for item in items)
    assert len({item.text for item in items}) == len(items)


def test_no_opening_is_both_trained_on_and_evaluated():
    train, evaluation = set(openings("train")), set(openings("evaluation"))
    assert not train & evaluation
    assert TRIGGER not in train | evaluation
    # The trigger's own words appear in other sentences, so that no single word of it is the trigger.
    for word in ("heron", "waits", "by the river"):
        assert any(word in opening for opening in train)


def test_instructions_depend_on_the_seed_alone():
    assert everyday("train", 30, seed=1) == everyday("train", 30, seed=1)
    assert everyday("train", 30, seed=1) != everyday("train", 30, seed=2)
    assert len(EVERYDAY) * len(topics("train")) >= 500


def test_calibration_has_groups_enough_for_a_rate_of_one_percent():
    """A hundred groups for the threshold and as many for the scale; first prompts have a topic each."""
    items = everyday("calibration", 500, seed=0)
    assert len({item.group for item in items}) > 250
    assert len({item.group for item in items[:250]}) == 250
