"""The prompts that fire a direction most, with every token coloured by its score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cluster.report.show import number, visible

STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """One prompt under one direction; `tokens` are marked up and coloured."""

    prompt_id: str
    score: float
    tokens: Markup


def turned(scores: Sequence[float | None], sign: int) -> list[float | None]:
    """Scores with the sign of the end that fires; a token without a score keeps none."""
    return [None if score is None else sign * score for score in scores]


def coloured(tokens: Sequence[str], scores: Sequence[float | None], *, largest: float) -> Markup:
    """Tokens in order, red where the score is positive and blue where negative, in steps of a fifth of `largest`.

    A score of None is a token that was not scored. The exact score stands in the token's title.
    """
    parts = []
    for token, score in zip(tokens, scores, strict=True):
        if score is None:
            parts.append(Markup('<span class="token">{}</span>').format(visible(token)))
            continue
        step = min(STEPS, int(abs(score) / (largest or 1.0) * STEPS + 0.5))
        css = "" if not step else f" {'heat' if score > 0 else 'cool'}-{step}"
        parts.append(Markup('<span class="token{}" title="{}">{}</span>').format(css, number(score, 2), visible(token)))
    return Markup("").join(parts)


def exemplars(direction: dict[str, Any], *, most: int = 5) -> list[Exemplar]:
    """The prompts at the end of a direction that fires, strongest first, of one entry of `thresher monitor audit`.

    direction  {direction, site, top, bottom}, each end a list of {prompt_id, score, standardised, tokens, scores}

    Tokens that all of them begin with, such as a chat template's, are left out: they tell nothing apart, and the first
    token's activations are of another size than all others.
    """
    end, sign = strong_end(direction)
    shown = sorted(end, key=lambda prompt: -prompt["standardised"])[:most]
    largest = max((abs(prompt["score"]) for prompt in shown), default=1.0)
    shared = shared_start([prompt["tokens"] for prompt in shown])
    return [
        Exemplar(
            prompt_id=prompt["prompt_id"],
            score=sign * prompt["score"],
            tokens=Markup("… " if shared else "")
            + coloured(prompt["tokens"][shared:], turned(prompt["scores"][shared:], sign), largest=largest),
        )
        for prompt in shown
    ]


def strong_end(direction: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The end that is farther from what clean prompts score, and 1 for the top or −1 for the bottom.

    The sign of a singular vector means nothing: scores are turned so that the end that fires is positive.
    """
    ends = [(direction["top"], 1), (direction["bottom"], -1)]
    return max(ends, key=lambda end: max((prompt["standardised"] for prompt in end[0]), default=float("-inf")))


def shared_start(tokens: Sequence[Sequence[str]]) -> int:
    """How many tokens all prompts begin with; 0 for a single prompt, and never the whole of one."""
    if len(tokens) < 2:
        return 0
    shortest = min(len(row) for row in tokens) - 1
    same = (len({row[place] for row in tokens}) == 1 for place in range(shortest))
    return next((place for place, alike in enumerate(same) if not alike), shortest)
