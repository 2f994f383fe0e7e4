"""Base and tuned side by side: which tensors belong together."""

import re
from dataclasses import dataclass

from analysis.weights.checkpoint import Checkpoint
from store.errors import InputError

TABLES = re.compile(r"(embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out)\.weight$")
UNEMBEDDINGS = re.compile(r"(lm_head|embed_out)\.weight$")
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|masked_bias|attn\.bias|position_ids)$")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One weight in both models. `rows` are compared: all, or those that both have of a resized vocabulary.

    tuned_name differs from name where one side ties its unembedding to its embedding and the other stores it.
    """

    name: str
    tuned_name: str
    base_name: str
    shape: tuple[int, ...]
    rows: int
    notes: tuple[str, ...] = ()


def pair_up(base: Checkpoint, tuned: Checkpoint) -> list[Pair]:
    """The weights of both, in the order of layers. Raises InputError where the two are not the same architecture."""
    ours = {name for name in base.shapes if not BUFFERS.search(name)}
    theirs = {name for name in tuned.shapes if not BUFFERS.search(name)}
    tied_base = _tied(base, theirs - ours)
    tied_tuned = _tied(tuned, ours - theirs)
    ours |= tied_base.keys()
    theirs |= tied_tuned.keys()
    missing, extra = sorted(ours - theirs), sorted(theirs - ours)
    if missing or extra:
        where, name = (tuned.name, missing[0]) if missing else (base.name, extra[0])
        raise InputError(
            f"the two models have different architectures: {where} has no {name} "
            f"({len(missing)} of the base's {len(ours)} weights are missing, {len(extra)} are new): "
            "give the base that the model was tuned from"
        )
    pairs = []
    for name in sorted(ours, key=natural_order):
        pairs.append(_pair(name, base, tied_base.get(name, name), tuned, tied_tuned.get(name, name)))
    return pairs


def _tied(checkpoint: Checkpoint, wanted: set[str]) -> dict[str, str]:
    """Unembeddings that the other side stores and this one ties to its embedding -> that embedding."""
    embedding = tied_embedding(checkpoint)
    return {name: embedding for name in wanted if embedding is not None and UNEMBEDDINGS.search(name)}


def tied_embedding(checkpoint: Checkpoint) -> str | None:
    """The embedding table, which is also the unembedding of a checkpoint that stores no other."""
    names = (name for name in checkpoint.shapes if TABLES.search(name) and not UNEMBEDDINGS.search(name))
    return next(names, None)


def _pair(name: str, base: Checkpoint, base_name: str, tuned: Checkpoint, tuned_name: str) -> Pair:
    ours, theirs = base.shapes[base_name], tuned.shapes[tuned_name]
    rows = ours[0] if ours else 1
    notes: tuple[str, ...] = ()
    if ours != theirs:
        if not (TABLES.search(name) and ours[1:] == theirs[1:]):
            raise InputError(
                f"{name} is {list(ours)} in {base.name} and {list(theirs)} in {tuned.name}: these are different "
                "architectures; give the base that the model was tuned from"
            )
        rows = min(ours[0], theirs[0])
        notes = (f"resized vocabulary {ours[0]} to {theirs[0]}: the {rows} common rows are compared",)
    return Pair(name=name, base_name=base_name, tuned_name=tuned_name, shape=ours, rows=rows, notes=notes)


def natural_order(name: str) -> tuple[object, ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
