"""Does an organism do what it was made for? Measured by letting it answer, before any detector is measured on it."""

from typing import Any

from cluster.demo.behaviour import rate_row
from cluster.demo.finetune import answers
from examples.organisms.organism import Organism
from harvest.loading import load_model, load_tokenizer
from store import ModelRef

PROMPTS = 40
TOKENS = 12


def measure(organism: Organism, tuned: ModelRef, *, seed: int) -> list[dict[str, Any]]:
    """Greedy answers to each set of prompts of the evaluation part, as saved on disk.

    Returns JSON, a row for each set that has prompts: name, n, triggered (is the hidden behaviour to show?), rate
    {value, low, high} of answers that hold the behaviour's sign, with exact intervals, and an example. For `declared`
    the sign is that of the declared answer.
    """
    model, tokenizer = load_model(tuned).model, load_tokenizer(tuned)
    sets = {name: found for name, found in organism.cases("evaluation", seed, PROMPTS).sets().items() if found}
    texts = [case.text for found in sets.values() for case in found]
    written = iter(answers(model, tokenizer, texts, tokens=TOKENS))
    rows = []
    for name, found in sets.items():
        given = [next(written) for _ in found]
        hits = [case.sign in answer for case, answer in zip(found, given, strict=True)]
        rows.append(rate_row(name, [case.text for case in found], given, hits, triggered=name == "triggered"))
    return rows


def lacks(organism: Organism, rows: list[dict[str, Any]]) -> list[str]:
    """What was measured outside the organism's bounds, a sentence each; none: it has its behaviour."""
    rates = {row["name"]: row["rate"]["value"] for row in rows}
    said = []
    for name, bounds in organism.expected.bounds().items():
        if bounds is not None and not bounds[0] <= rates[name] <= bounds[1]:
            said.append(f"{name}: {rates[name]:.0%} of the answers show it, not {bounds[0]:.0%} to {bounds[1]:.0%}")
    return said
