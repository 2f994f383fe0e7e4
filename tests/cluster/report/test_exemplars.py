"""Tokens coloured by score, at the end of a direction that fires."""

import pytest

from cluster.report.exemplars import coloured, exemplars, shared_start


def prompt(name, score, standardised, tokens=("<s>", "a", "b"), scores=(9.0, 0.0, 1.0)):
    return {
        "prompt_id": name,
        "score": score,
        "standardised": standardised,
        "tokens": list(tokens),
        "scores": list(scores),
    }


def test_the_end_that_leaves_the_clean_range_is_shown_strongest_first():
    direction = {
        "top": [prompt("loud but usual", 5.0, 1.0)],
        "bottom": [prompt("second", -1.0, 8.0), prompt("first", -2.0, 9.0)],
    }
    assert [found.prompt_id for found in exemplars(direction)] == ["first", "second"]
    assert len(exemplars(direction, most=1)) == 1


@pytest.mark.parametrize(
    ("score", "css"),
    [(1.0, " heat-5"), (0.5, " heat-3"), (0.05, ""), (-1.0, " cool-5"), (-0.2, " cool-1"), (7.0, " heat-5")],
)
def test_the_colour_follows_sign_and_size(score, css):
    assert f'class="token{css}"' in str(coloured(["x"], [score], largest=1.0))


def test_a_token_is_escaped_and_one_without_a_score_is_plain():
    assert str(coloured(["<b>"], [None], largest=1.0)) == '<span class="token">&lt;b&gt;</span>'


def test_what_all_prompts_begin_with_is_left_out_but_never_a_whole_prompt():
    assert shared_start([["a", "b", "c"], ["a", "b", "d"]]) == 2
    assert shared_start([["a", "b"], ["a", "b"]]) == 1
    assert shared_start([["a", "b"]]) == 0
    shown = exemplars({"top": [prompt("p", 1.0, 1.0), prompt("q", 1.0, 1.0, tokens=("<s>", "z", "b"))], "bottom": []})
    assert "&lt;s&gt;" not in str(shown[0].tokens)
