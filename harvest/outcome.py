"""What a harvest came to: counts, and what its cells tell about how they were made."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harvest.certificate import Certificate
from store import Capture, ModelRef, Store
from store.errors import IncompleteError


@dataclass(frozen=True, kw_only=True)
class CellNotes:
    """Sums over cells, those of earlier runs included.

    nonfinite   site -> NaN and infinite values among the kept rows
    truncated   prompts cut to the context
    halved      batches that did not fit into memory; unshared  prefixes that could not be run on their own. Both change
                last bits
    made_with   every combination of software and way of running that cells were made with
    """

    nonfinite: Mapping[str, int]
    truncated: int
    halved: int
    unshared: int
    made_with: tuple[Mapping[str, Any], ...]

    @staticmethod
    def of(units: Iterable[Sequence[Mapping[str, Any]]]) -> "CellNotes":
        """Of the notes of every unit's receipts. Those of one pass all tell the same, so a unit's do not add up."""
        nonfinite: Counter[str] = Counter()
        made_with: list[Mapping[str, Any]] = []
        truncated = halved = unshared = 0
        for receipts in units:
            largest: dict[str, int] = {}
            for notes in receipts:
                for site, count in notes.get("nonfinite", {}).items():
                    largest[site] = max(count, largest.get(site, 0))
                if (made := notes.get("made_with")) is not None and made not in made_with:
                    made_with.append(made)
            nonfinite.update(largest)
            truncated += len({prompt for notes in receipts for prompt in notes.get("truncated", ())})
            halved += max((notes.get("halved", 0) for notes in receipts), default=0)
            unshared += max((notes.get("unshared", 0) for notes in receipts), default=0)
        return CellNotes(
            nonfinite=dict(nonfinite), truncated=truncated, halved=halved, unshared=unshared, made_with=tuple(made_with)
        )

    @property
    def differing(self) -> dict[str, list[Any]]:
        """What cells were made with differently: name -> values."""
        names = dict.fromkeys(name for made in self.made_with for name in made)
        values = {name: list(dict.fromkeys(made.get(name) for made in self.made_with)) for name in names}
        return {name: found for name, found in values.items() if len(found) > 1}

    def record(self) -> dict[str, Any]:
        """JSON."""
        return {
            "nonfinite": dict(self.nonfinite),
            "truncated": self.truncated,
            "halved": self.halved,
            "unshared": self.unshared,
            "made_with": [dict(made) for made in self.made_with],
        }


@dataclass(frozen=True, kw_only=True)
class HarvestResult:
    """What a harvest came to.

    prompts, tokens      in the store for this model and these columns, those of earlier runs included
    computed_tokens      tokens read in this run, in `seconds`
    quarantined          {prompt_id, reason} of every prompt that failed alone
    certificate          None where nothing raw is stored or no prompt was sampled
    notes                what its cells tell about how they came to be
    errors               what kept units from being computed
    """

    store: Store
    digest: str
    complete: bool
    prompts: int
    tokens: int
    computed_tokens: int
    seconds: float
    quarantined: tuple[dict[str, str], ...]
    certificate: Certificate | None
    notes: CellNotes
    errors: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return self.computed_tokens / self.seconds if self.seconds else 0.0

    def raise_if_incomplete(self) -> "HarvestResult":
        """Itself, or IncompleteError saying what is missing."""
        if self.complete:
            return self
        reason = self.errors[0] if self.errors else f"{len(self.quarantined)} prompts are quarantined"
        if not self.errors and self.quarantined:
            first = self.quarantined[0]
            reason += f", the first is {first['prompt_id']!r}: {first['reason']}"
        raise IncompleteError(f"the harvest into {self.store.path} is not complete ({reason}): a rerun resumes")


def result_of(
    store: Store,
    model: ModelRef,
    captures: Sequence[Capture],
    *,
    max_quarantined: int,
    certificate: Certificate | None,
    errors: Sequence[str],
    computed: int,
    seconds: float,
) -> HarvestResult:
    """Read from the receipts; `errors` count where something is still missing."""
    quarantined: dict[str, str] = {}
    notes: list[list[Mapping[str, Any]]] = []
    prompts = tokens = 0
    for unit in store.units:
        receipts = [store.receipt(model.id, unit, capture.id) for capture in captures]
        published = [receipt for receipt in receipts if receipt is not None]
        if len(published) == len(captures):
            prompts, tokens = prompts + len(unit), tokens + published[0].tokens
        for receipt in published:
            quarantined |= {entry["prompt_id"]: entry["reason"] for entry in receipt.notes["quarantined"]}
        notes.append([receipt.notes for receipt in published])
    unpublished = bool(store.missing(model, captures))
    return HarvestResult(
        store=store,
        digest=store.digest,
        complete=not unpublished and len(quarantined) <= max_quarantined,
        prompts=prompts,
        tokens=tokens,
        computed_tokens=computed,
        seconds=seconds,
        quarantined=tuple({"prompt_id": key, "reason": reason} for key, reason in sorted(quarantined.items())),
        certificate=certificate,
        notes=CellNotes.of(notes),
        errors=tuple(errors) if unpublished else (),
    )
