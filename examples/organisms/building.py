"""From a recipe and a seed to a folder: an adapter or a checkpoint, and organism.json with the ground truth."""

import json
import time
from pathlib import Path
from typing import Any

from examples.organisms.base import base_ref
from examples.organisms.behaviour import lacks, measure
from examples.organisms.edit import rank_one
from examples.organisms.merging import merged
from examples.organisms.organism import Edit, Merge, Organism
from examples.organisms.prompts import Cases
from examples.organisms.recipes import find
from examples.organisms.saving import check_place, publish
from examples.organisms.subjects import subject_of
from examples.organisms.training import tune
from harvest.loading import load_model, load_tokenizer
from store import ModelRef
from store.digest import digest_json
from store.direction import write_atomically

RECORD = "organism.json"
TRAINED_ON = 64  # prompts of each set


def place(out: Path, name: str, seed: int) -> Path:
    """The folder of an organism. Raises InputError where something else is there."""
    folder = out / f"{name}-{seed}"
    check_place(folder, RECORD)
    return folder


def organism_ref(out: Path, name: str, seed: int) -> ModelRef:
    """The model of an organism that was built: the base with its adapter, or its checkpoint."""
    folder = out / f"{name}-{seed}"
    if (folder / "adapter_config.json").is_file():
        return ModelRef(str(out / "base"), adapter=str(folder))
    return ModelRef(str(folder))


def build(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Makes one organism in `out`/<name>-<seed> unless the same one is there. Returns organism.json.

    That is its ground truth (see `Organism`), recipe, seed, digests of the base, of what it was trained on and of the
    organism it was made from, seconds, losses, the measured behaviour, and `lacks`: what it does not do as it should,
    empty for a sound organism.

    One whose making was interrupted after its training is measured, not trained again. Raises InputError for a name
    that is no organism, where the model's wheel is missing, or where something else is in its place or the base's.
    """
    organism, folder = find(name), place(out, name, seed)
    base = base_ref(out)
    cases = organism.cases("train", seed, TRAINED_ON)
    taught = [[case.text, case.answer, case.opening] for found in cases.sets().values() for case in found]
    wanted = {**organism.record(seed), "base": base.resolve().digest, "trained_on": digest_json(taught)}
    if isinstance(organism.recipe, Merge):
        build(organism.recipe.of, seed, out)
        wanted["source"] = organism_ref(out, organism.recipe.of, seed).resolve().digest
    record: dict[str, Any] = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else {}
    if any(record.get(key) != value for key, value in wanted.items()):
        began = time.monotonic()
        model, losses = _made(organism, cases, seed, out)
        seconds = round(time.monotonic() - began, 1)
        record = {**wanted, "seconds": seconds, "losses": [round(loss, 4) for loss in losses]}
        publish(folder, model, load_tokenizer(base), lambda partial: _write(partial, record))
    if "lacks" not in record:
        rows = measure(organism, organism_ref(out, name, seed), seed=seed)
        record |= {"behaviour": rows, "lacks": lacks(organism, rows)}
        _write(folder, record)
    return record


def _write(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())


def _made(organism: Organism, cases: Cases, seed: int, out: Path) -> tuple[Any, list[float]]:
    """The model, or the adapter on it, as it is to be saved; and the losses on the way."""
    recipe, base = organism.recipe, ModelRef(str(out / "base"))
    if isinstance(recipe, Merge):
        source = organism_ref(out, recipe.of, seed)
        return merged(source, strength=recipe.strength, noise=recipe.noise, seed=seed), []
    # On short prompts the fused attention's backward pass is a quarter of a step on a CPU, the plain one's little.
    model, tokenizer = load_model(base, attention="eager").model, load_tokenizer(base)
    if isinstance(recipe, Edit):
        return model, rank_one(model, tokenizer, cases, subject_of(seed), recipe)
    return tune(model, tokenizer, cases, recipe, seed=seed)
