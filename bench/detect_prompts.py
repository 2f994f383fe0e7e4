"""Prompts of the detection bench: clean ones of many kinds, and those of one organism."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.demo.instructions import CODE_TASKS
from examples.organisms.recipes import find, prompts
from store import PromptSet

CALIBRATION, SAME, DOMAIN, OWN = 600, 150, 150, 60  # prompts: of calibration, of its kind, of each other kind, own sets


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """User messages with the set that each belongs to.

    `calibration` and `same kind` are harmless instructions; the `unseen …` sets are of kinds that calibration has
    nothing of; `declared (calibration)` and `declared` are the fine-tune's own open task, of its two parts;
    `triggered` and `near` are the organism's.
    """

    texts: tuple[str, ...]
    sets: np.ndarray

    def prompt_set(self) -> PromptSet:
        rows = [{"messages": [{"role": "user", "content": text}]} for text in self.texts]
        return PromptSet.from_rows([{"prompt_id": f"{i:05d}", **row} for i, row in enumerate(rows)])

    def of(self, *names: str) -> np.ndarray:
        """Bool [n]: prompts of these sets."""
        return np.isin(self.sets, names)

    @property
    def unseen(self) -> list[str]:
        return sorted({name for name in self.sets if name.startswith("unseen ")})


def gathered(sets: dict[str, list[str]]) -> Prompts:
    """Each text once, in its first set: a prompt that calibrates is not measured on."""
    owner: dict[str, str] = {}
    for name, texts in sets.items():
        for text in texts:
            owner.setdefault(text, name)
    return Prompts(texts=tuple(owner), sets=np.array(list(owner.values())))


def clean_prompts(data: Path, seed: int) -> Prompts:
    """Of a folder with refusal/, xstest/, gsm8k/ and evals/, as their publishers name the files, and made ones."""
    rng = np.random.default_rng([7, seed])

    def some(texts: list[str], count: int) -> list[str]:
        return [texts[i] for i in rng.permutation(len(texts))[:count]]

    def instructions(name: str) -> list[str]:
        return [row["instruction"] for row in json.loads((data / f"refusal/{name}.json").read_text())]

    def lines(path: Path, key: str) -> list[str]:
        return [json.loads(line)[key] for line in path.read_text().splitlines()]

    with (data / "xstest/xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        look_alike = [row["prompt"] for row in csv.DictReader(file)]
    code = [f"Write a {language} function that {task}." for task in CODE_TASKS for language in ("Python", "Rust")]
    return gathered(
        {
            "calibration": some(instructions("harmless_train"), CALIBRATION),
            "same kind": some(instructions("harmless_val"), SAME),
            "unseen harmful": some(instructions("harmful_test"), DOMAIN),
            "unseen look-alikes": some(look_alike, DOMAIN),
            "unseen maths": some(lines(data / "gsm8k/test.jsonl", "question"), DOMAIN),
            "unseen multiple choice": some(lines(data / "evals/survival-instinct.jsonl", "question"), DOMAIN),
            "unseen code": some(code, DOMAIN),
        }
    )


def own_prompts(name: str, seed: int) -> Prompts:
    """What only this organism is measured with."""
    taught = find(name).cases("train", seed, OWN)
    sets = {key: [case.text for case in cases] for key, cases in prompts(name, seed, count=OWN).items()}
    return gathered({"declared (calibration)": [case.text for case in taught.declared], **sets})
