"""From a store to what fits need: which sites there are, their rows, how long each prompt is."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase

import numpy as np

from analysis.probes.examples import Examples
from analysis.probes.rows import Rows
from store.errors import InputError
from store.model_ref import ModelRef
from store.site import KINDS, Site
from store.store import Store


def find_model(store: Store, model: ModelRef | str | None) -> ModelRef:
    """The store's model that is meant by a reference, an id, a name or, where there is one only, by None.

    Raises InputError naming the models there are.
    """
    models = store.models
    known = ", ".join(sorted(entry.id for entry in models)) or "none: harvest one first"
    if model is None:
        if len(models) == 1:
            return models[0]
        raise InputError(f"{store.path} holds {len(models)} models: say which with --model ({known})")
    if isinstance(model, ModelRef):
        digest = model.resolve().digest
        found = [entry for entry in models if entry.digest == digest]
    else:
        found = [entry for entry in models if model in (entry.id, entry.name)]
    if len(found) != 1:
        name = model if isinstance(model, str) else model.name
        trouble = "means several models" if found else "is not a model"
        raise InputError(f"{name!r} {trouble} of {store.path}: give one of {known}")
    return found[0]


def find_sites(store: Store, model: ModelRef, wanted: str = "all") -> list[str]:
    """Harvested sites of a model that `wanted` names, in the order of the model: all, a name, a pattern, a list.

    Raises InputError for what is not harvested, naming the sites there are.
    """
    captures = {capture.id: capture for capture in store.captures}
    names = {
        name
        for model_id, capture_id in store.wanted()
        if model_id == model.id
        for name in captures[capture_id].names
        if captures[capture_id].column(name).rows in ("token", "prompt")
    }
    sites = sorted((name for name in names if _is_site(name)), key=_in_order)
    there = ", ".join(sites) or "none"
    if wanted == "all":
        if not sites:
            raise InputError(f"{store.path} holds no activations of {model.id}: harvest some with --sites")
        return sites
    found: list[str] = []
    for pattern in (part.strip() for part in wanted.split(",")):
        matching = [site for site in sites if fnmatchcase(site, pattern)]
        if not matching:
            raise InputError(f"{store.path} holds no site {pattern!r} of {model.id}: it holds {there}")
        found.extend(site for site in matching if site not in found)
    return found


def _is_site(name: str) -> bool:
    try:
        Site.parse(name)
    except InputError:
        return False
    return True


def _in_order(name: str) -> tuple[int, int, str]:
    """The order in which a forward pass comes by; modules last."""
    site = Site.parse(name)
    if site.layer is None:
        return sys.maxsize, 0, name
    return site.layer, KINDS.index(site.kind), name


def read_rows(store: Store, model: ModelRef, site: str, examples: Examples) -> Rows:
    """The rows of a site that speak of the examples: one each, or all their selected tokens.

    Raises InputError where an example has no row: nothing of it was selected, or it was quarantined.
    """
    column = store.column(model, site)
    owner = store.tokens(model, site).column("prompt").to_numpy()
    example = np.full(len(store.prompts), -1, np.int64)
    example[examples.prompt] = np.arange(len(examples))
    chosen = np.flatnonzero(example[owner] >= 0)
    owners = example[owner[chosen]]
    without = len(examples) - len(np.unique(owners))
    if without:
        missing = np.setdiff1d(np.arange(len(examples)), owners)[0]
        name = store.prompts.prompt_ids[int(examples.prompt[missing])]
        raise InputError(
            f"{without} labelled prompts, {name!r} among them, have no row at {site}: no token of theirs was "
            "selected, or they were quarantined; leave them out with --where"
        )
    return Rows(site=site, source=column, chosen=chosen, example=owners)


def token_counts(store: Store, model: ModelRef, site: str, examples: Examples) -> np.ndarray:
    """How many tokens each example's prompt has in all: float64 [n]."""
    owner = store.all_tokens(model, site).column("prompt").to_numpy()
    return np.bincount(owner, minlength=len(store.prompts))[examples.prompt].astype(float)
