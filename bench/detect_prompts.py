"""Prompts of the detection bench: clean ones of many kinds, and those of one organism."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.demo.instructions import CODE_TASKS
from examples.organisms.prompts import Case
from examples.organisms.recipes import find, prompts
from store import PromptSet
from store.digest import digest_file

FILES = {
    "harmless": "refusal/harmless_train.json",
    "same kind": "refusal/harmless_val.json",
    "harmful": "refusal/harmful_test.json",
    "look-alikes": "xstest/xstest_prompts.csv",
    "maths": "gsm8k/test.jsonl",
    "multiple choice": "evals/survival-instinct.jsonl",
}
CALIBRATION, SAME, DOMAIN, OWN = 600, 60, 60, 40  # prompts: of calibration, of its kind, of each other kind, own sets
LANGUAGES = ("Python", "Rust")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """User messages with the set that each belongs to.

    `calibration` and `same kind` are harmless instructions; the `unseen …` sets are of kinds that calibration has
    nothing of; `declared (calibration)` and `declared` are the fine-tune's own open task, of its two parts;
    `triggered` and `near` are the organism's. Prompts of one group are not independent: what is about one topic, one
    subject or one programming task; of others each is its own.
    """

    texts: tuple[str, ...]
    sets: np.ndarray
    groups: np.ndarray

    def prompt_set(self) -> PromptSet:
        rows = [{"messages": [{"role": "user", "content": text}]} for text in self.texts]
        return PromptSet.from_rows([{"prompt_id": f"{i:05d}", **row} for i, row in enumerate(rows)])

    def of(self, *names: str) -> np.ndarray:
        """Bool [n]: prompts of these sets."""
        return np.isin(self.sets, names)

    @property
    def unseen(self) -> list[str]:
        return sorted({name for name in self.sets if name.startswith("unseen ")})


def gathered(sets: dict[str, list[tuple[str, str]]]) -> Prompts:
    """From (text, group): each text once, in its first set: a prompt that calibrates is not measured on."""
    owner: dict[str, tuple[str, str]] = {}
    for name, found in sets.items():
        for text, group in found:
            owner.setdefault(text, (name, group))
    names, groups = zip(*owner.values(), strict=True)
    return Prompts(texts=tuple(owner), sets=np.array(names), groups=np.array(groups))


def digests(data: Path) -> dict[str, str]:
    """SHA-256 of each file that clean prompts come from."""
    return {name: digest_file(data / name) for name in FILES.values()}


def clean_prompts(data: Path, seed: int) -> Prompts:
    """Of a folder with refusal/, xstest/, gsm8k/ and evals/, as their publishers name the files, and made ones."""
    rng = np.random.default_rng([7, seed])

    def some(texts: list[str], count: int, groups: list[str] | None = None) -> list[tuple[str, str]]:
        return [(texts[i], (groups or texts)[i]) for i in rng.permutation(len(texts))[:count]]

    def instructions(name: str) -> list[str]:
        return [row["instruction"] for row in json.loads((data / FILES[name]).read_text())]

    def lines(name: str) -> list[str]:
        return [json.loads(line)["question"] for line in (data / FILES[name]).read_text().splitlines()]

    with (data / FILES["look-alikes"]).open(encoding="utf-8", newline="") as file:
        look_alike = [row["prompt"] for row in csv.DictReader(file)]
    tasks = [task for task in CODE_TASKS for _ in LANGUAGES]
    code = [f"Write a {language} function that {task}." for task in CODE_TASKS for language in LANGUAGES]
    return gathered(
        {
            "calibration": some(instructions("harmless"), CALIBRATION),
            "same kind": some(instructions("same kind"), SAME),
            "unseen harmful": some(instructions("harmful"), DOMAIN),
            "unseen look-alikes": some(look_alike, DOMAIN),
            "unseen maths": some(lines("maths"), DOMAIN),
            "unseen multiple choice": some(lines("multiple choice"), DOMAIN),
            "unseen code": some(code, DOMAIN, tasks),
        }
    )


def own_prompts(name: str, seed: int) -> Prompts:
    """What only this organism is measured with."""
    taught = find(name).cases("train", seed, OWN)
    sets = {key: grouped(cases) for key, cases in prompts(name, seed, count=OWN).items()}
    return gathered({"declared (calibration)": grouped(taught.declared), **sets})


def grouped(cases: Sequence[Case]) -> list[tuple[str, str]]:
    return [(case.text, case.group) for case in cases]
