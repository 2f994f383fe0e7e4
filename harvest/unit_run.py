"""One unit through a model: prompts to tokens, tokens to batches, activations to sinks, columns back.

A prompt that fails alone is quarantined with its reason; its place in the batch is taken by a dummy of its length,
so that the other prompts' numbers are what they are anyway. A batch that does not fit into memory is halved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from harvest.batching import filler, plan_endings
from harvest.encoding import EncodedPrompt
from harvest.prefixes import Group, plan_groups, short_context
from harvest.reader import FINAL, Prefix, Reader
from harvest.selection import selected_tokens
from store import Sink, SinkBatch, SinkColumn, Unit
from store.errors import InputError, ThresherError, first_line
from store.sink import ROLES

NOTHING = np.zeros(0, np.int64)


@dataclass(kw_only=True)
class Notes:
    """What a cell tells about how it came to be.

    quarantined  row of the unit -> reason
    halved       batches that did not fit into memory
    unshared     prefixes that could not be run on their own
    nonfinite    site -> NaN and infinite values among the kept rows, as they are stored
    truncated    prompt id -> tokens cut off
    """

    quarantined: dict[int, str] = field(default_factory=dict)
    halved: int = 0
    unshared: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)

    def record(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        quarantined = [
            {"prompt_id": prompts[row].prompt_id, "reason": reason} for row, reason in sorted(self.quarantined.items())
        ]
        return {
            "quarantined": quarantined,
            "halved": self.halved,
            "unshared": self.unshared,
            "nonfinite": {site: count for site, count in self.nonfinite.items() if count},
            "truncated": self.truncated,
        }


@dataclass(frozen=True, kw_only=True)
class UnitColumns:
    """What one unit gave: columns by name, the token table of all its prompts, and its notes (JSON)."""

    columns: dict[str, SinkColumn]
    tokens: pa.Table
    notes: dict[str, Any]


class UnitRun:
    """Runs the encoded prompts of one unit through a reader and its sinks.

    quarantined  row of the unit -> reason, of prompts that are known to fail before anything runs
    """

    def __init__(
        self,
        reader: Reader,
        prompts: Sequence[EncodedPrompt],
        sinks: Sequence[Sink],
        *,
        tokens: str,
        budget: int,
        share_prefixes: bool = False,
        pack: bool = False,
        quarantined: Mapping[int, str] | None = None,
    ) -> None:
        self.reader = reader
        self.prompts = prompts
        self.sinks = sinks
        self.keep = [selected_tokens(prompt, tokens) for prompt in prompts]
        self.budget = budget
        self.share_prefixes = share_prefixes
        self.pack = pack
        self.prefix: Prefix | None = None
        self.stored_as_half = {
            site for sink in sinks if getattr(sink, "dtype", None) == "float16" for site in sink.sites
        }
        self.nonfinite: dict[str, torch.Tensor | int] = {}
        self.notes = Notes(
            quarantined=dict(quarantined or {}),
            truncated={prompt.prompt_id: prompt.dropped for prompt in prompts if prompt.dropped},
        )
        self._check_rows(tokens)

    def run(self, unit: Unit, table: pa.Table) -> UnitColumns:
        for sink in self.sinks:
            sink.start(unit, table)
        # Sinks learn the widths even where no row of a unit is kept.
        self._give([], {site: rows[:0] for site, rows in self.reader.example.items()})
        short = short_context(self.reader.loaded.decoder.config)
        for group in plan_groups([prompt.ids for prompt in self.prompts], share=self.share_prefixes, short=short):
            self.prefix = self._run_prefix(group)
            shared = self.prefix.length if self.prefix else 0
            lengths = [len(self.prompts[row]) - shared for row in group.rows]
            for places in plan_endings(lengths, self.budget, shared=shared, pack=self.pack):
                self._run_batch([group.rows[place] for place in places])
        columns = {column.name: column for sink in self.sinks for column in sink.finish()}
        self.notes.nonfinite = {site: int(count) for site, count in self.nonfinite.items()}
        return UnitColumns(columns=columns, tokens=self._token_table(), notes=self.notes.record(self.prompts))

    def _run_batch(self, rows: list[int]) -> None:
        try:
            found = self._forward(rows)
        except ThresherError:
            raise
        except Exception as error:
            reason, short = first_line(error), is_out_of_memory(error)
        else:
            self._give(rows, found)
            return
        # Only here is the error gone, and with it what the failed pass had in memory.
        if short:
            self._halve(rows, reason)
        elif self._quarantine_culprits(rows):
            self._run_batch(rows)
        else:
            self._give(rows, self._forward(rows))

    def _halve(self, rows: list[int], reason: str) -> None:
        self.notes.halved += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) == 1:
            self.notes.quarantined[rows[0]] = f"does not fit into memory alone: {reason}"
            return
        middle = (len(rows) + 1) // 2
        self._run_batch(rows[:middle])
        self._run_batch(rows[middle:])

    def _quarantine_culprits(self, rows: list[int]) -> bool:
        """Finds the prompts of a failed batch that fail alone; False where none does that was not known."""
        known = len(self.notes.quarantined)
        for row in rows:
            if row not in self.notes.quarantined:
                try:
                    self._forward([row])
                except Exception as alone:
                    self.notes.quarantined[row] = first_line(alone)
        return len(self.notes.quarantined) > known

    def _run_prefix(self, group: Group) -> Prefix | None:
        """The group's shared beginning, run once; None where there is none, or it cannot be run."""
        if not group.prefix:
            return None
        try:
            return self.reader.read_prefix(self.prompts[group.rows[0]].ids[: group.prefix])
        except ThresherError:
            raise
        except Exception:
            # Whatever it is, the prompts will tell one by one.
            self.notes.unshared += 1
            return None

    def _forward(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Kept rows of some prompts, prompt by prompt in order of position: site -> [k, width…]."""
        absent = self.notes.quarantined.keys()
        ids = [np.zeros_like(self.prompts[row].ids) if row in absent else self.prompts[row].ids for row in rows]
        keep = [NOTHING if row in absent else np.flatnonzero(self.keep[row]) for row in rows]
        shared = self.prefix.length if self.prefix else 0
        lengths = [len(tokens) - shared for tokens in ids]
        added = filler(sum(lengths), max(lengths), self.budget) if self.pack else []
        ids += [np.zeros(shared + length, np.int32) for length in added]
        keep += [NOTHING] * len(added)
        return self.reader.read(ids, keep, prefix=self.prefix, packed=self.pack)

    def _give(self, rows: list[int], found: dict[str, torch.Tensor]) -> None:
        kept = [row for row in rows if row not in self.notes.quarantined]
        positions = [np.flatnonzero(self.keep[row]).astype(np.int32) for row in kept]
        none = np.zeros(0, np.int32)
        final = found.pop(FINAL, None)
        head = self.reader.head
        batch = SinkBatch(
            activations=found,
            prompt=np.repeat(np.array(kept, np.int32), [len(part) for part in positions]),
            position=np.concatenate([none, *positions]),
            token_id=np.concatenate([none, *(self.prompts[row].ids[self.keep[row]] for row in kept)]),
            role=np.concatenate([none.astype(np.int8), *(self.prompts[row].role[self.keep[row]] for row in kept)]),
            logits=None if final is None or head is None else lambda part: head.logits(final[part]),
        )
        for site, values in found.items():
            # What float32 holds may be too large for the dtype it is stored in.
            stored = values.half() if site in self.stored_as_half else values
            # Counted on the device: asking for the number would make the host wait for every batch.
            self.nonfinite[site] = self.nonfinite.get(site, 0) + stored.numel() - torch.isfinite(stored).sum()
        with torch.inference_mode():
            for sink in self.sinks:
                sink.add(batch)

    def _check_rows(self, tokens: str) -> None:
        """A row per prompt needs a token of every prompt."""
        if any("prompt" in sink.columns.values() for sink in self.sinks):
            for prompt, keep in zip(self.prompts, self.keep, strict=True):
                if not keep.any():
                    raise InputError(
                        f"prompt {prompt.prompt_id!r} has no token that tokens={tokens} keeps, and a row per prompt "
                        "was asked: choose other tokens, or leave the prompt out"
                    )

    def _token_table(self) -> pa.Table:
        """All tokens of the unit in order; those of quarantined prompts are there, and not selected."""
        rows = range(len(self.prompts))
        lengths = [len(prompt) for prompt in self.prompts]
        selected = [keep & (row not in self.notes.quarantined) for row, keep in enumerate(self.keep)]
        role = pa.DictionaryArray.from_arrays(
            pa.array(np.concatenate([prompt.role for prompt in self.prompts])), pa.array(ROLES)
        )
        return pa.table(
            {
                "prompt": pa.array(np.repeat(np.array(rows, np.int32), lengths)),
                "position": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])),
                "token_id": pa.array(np.concatenate([prompt.ids for prompt in self.prompts])),
                "role": role,
                "selected": pa.array(np.concatenate(selected)),
            }
        )


def is_out_of_memory(error: BaseException) -> bool:
    """True for what CUDA, and PyTorch's allocator on the host, raise when memory is short."""
    messages = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(said in str(error) for said in messages)
