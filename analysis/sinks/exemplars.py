"""Exemplars of a whole store: the units' best merged, with the text around each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.sinks.exemplar_sink import PLACES_PREFIX, SCORES_PREFIX
from store.cell import Receipt, read_tokens
from store.errors import InputError
from store.model_ref import ModelRef
from store.store import Store
from store.unit import Unit


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """One token that a direction scores high or low, and the text around it.

    prompt           row of the prompt set
    before, after    text of the tokens on either side; `token` is its own
    """

    prompt_id: str
    prompt: int
    position: int
    token_id: int
    score: float
    before: str
    token: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Exemplars:
    """One direction's exemplars: `top` from the highest score down, `bottom` from the lowest up."""

    direction: str
    site: str
    top: tuple[Exemplar, ...]
    bottom: tuple[Exemplar, ...]


def read_exemplars(
    store: Store, model: ModelRef | str, name: str, *, decode: Callable[[Sequence[int]], str], window: int = 12
) -> list[Exemplars]:
    """Exemplars of all directions of a column `exemplars.…`, in the directions' order; as many as a unit keeps.

    decode  token ids to text: `harvest.load_tokenizer(model).decode`
    window  tokens of the prompt that are shown on either side

    Raises InputError for a column that is not there or holds none, IncompleteError where units are missing.
    """
    settings = next((c.column(name).settings for c in store.captures if name in c.names), {})
    if not name.startswith(SCORES_PREFIX) and settings:
        raise InputError(f"column {name!r} holds no exemplars: those are called {SCORES_PREFIX}directions-…")
    places = store.column(model, PLACES_PREFIX + name.removeprefix(SCORES_PREFIX))
    found = store.column(model, name)
    scores = np.stack(list(found.per_unit()))  # [units, t, 2, n]
    where = np.stack(list(places.per_unit()))  # [units, t, 2, n, 3]
    reader = _Reader(store=store, units=_units(store, found.receipts), decode=decode, window=window, tokens={})
    return [
        Exemplars(
            direction=direction,
            site=site,
            top=reader.best(-scores[:, place, 0], scores[:, place, 0], where[:, place, 0]),
            bottom=reader.best(scores[:, place, 1], scores[:, place, 1], where[:, place, 1]),
        )
        for place, (direction, site, _) in enumerate(settings["directions"])
    ]


def _units(store: Store, receipts: Sequence[Receipt]) -> list[tuple[Unit, Receipt]]:
    units = {unit.name: unit for unit in store.units}
    return [(units[receipt.unit], receipt) for receipt in receipts]


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Finds the prompts and texts of places; the token tables of units that are asked for are kept."""

    store: Store
    units: list[tuple[Unit, Receipt]]
    decode: Callable[[Sequence[int]], str]
    window: int
    tokens: dict[int, tuple[np.ndarray, np.ndarray]]

    def best(self, order: np.ndarray, scores: np.ndarray, where: np.ndarray) -> tuple[Exemplar, ...]:
        """The units' exemplars with the lowest `order` [units, n], as many as one unit keeps, without empty places."""
        n = order.shape[1]
        flat = np.argsort(np.where(np.isnan(order), np.inf, order), axis=None, kind="stable")[:n]
        chosen = [divmod(int(place), n) for place in flat]
        return tuple(
            self._exemplar(number, where[number, rank], float(scores[number, rank]))
            for number, rank in chosen
            if not np.isnan(scores[number, rank])
        )

    def _exemplar(self, number: int, where: np.ndarray, score: float) -> Exemplar:
        row, position, token_id = (int(part) for part in where)
        unit, receipt = self.units[number]
        if number not in self.tokens:
            table = read_tokens(self.store.location, receipt)
            self.tokens[number] = (table.column("prompt").to_numpy(), table.column("token_id").to_numpy())
        prompts, ids = self.tokens[number]
        text = ids[prompts == row].tolist()
        return Exemplar(
            prompt_id=self.store.prompts.table.column("prompt_id")[unit.start + row].as_py(),
            prompt=unit.start + row,
            position=position,
            token_id=token_id,
            score=score,
            before=self.decode(text[max(0, position - self.window) : position]),
            token=self.decode([token_id]),
            after=self.decode(text[position + 1 : position + 1 + self.window]),
        )
