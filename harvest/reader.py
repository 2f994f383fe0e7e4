"""Reads sites while the model runs: hooks, early stop, shared prefixes, and the cut after the last needed block.

A first run on two tokens, before anything is harvested, shows which hooks fire, in which order and how often. From
it follow the site that is reached last, where every later run stops, and the blocks that are never entered, which
are dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from harvest.architecture import Tap, tensor_of
from harvest.head import Head
from harvest.inputs import inputs_of, repeated, takes_prefix
from harvest.loading import LoadedModel
from store import Site
from store.errors import InputError

# Name under which the final hidden state is read where a sink asks for logits; no site is called that.
FINAL = "@final"
# Relative difference that half precision explains; a model that keeps another state is off by its whole size.
SAME = 0.1


class _Enough(Exception):
    """Raised by the last needed hook: nothing after it is computed."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Tokens that begin several prompts, run once.

    length  tokens; found  site -> [length, width…]; cache  the keys and values that follow-up tokens attend to
    """

    length: int
    found: Mapping[str, torch.Tensor]
    cache: Any


@dataclass(kw_only=True)
class _Pass:
    """State of one forward pass.

    rows     flat indices [k] of the kept tokens in the padded batch
    before   the same for the tokens before them, which predict them; only where logits are asked
    """

    shape: tuple[int, int]
    rows: torch.Tensor
    before: torch.Tensor | None
    stop_at: str | None
    found: dict[str, torch.Tensor] = field(default_factory=dict)
    fired: list[str] = field(default_factory=list)


class Reader:
    """Runs token batches and gives the activations at sites.

    sites   what to read
    logits  also read the final hidden state, so that `head` can make logits of it

    Raises InputError where the architecture has no such site, or a site's module runs never or more than once in a
    pass (an activation function that all blocks share, say), naming it.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[str], *, logits: bool = False) -> None:
        self.loaded = loaded
        decoder = loaded.decoder
        self.taps: dict[str, Tap] = {site: decoder.tap(Site.parse(site)) for site in sites}
        self.head = Head.of(loaded) if logits else None
        if logits:
            self.taps[FINAL] = Tap(module=decoder.backbone, side="out")
        inside = set(decoder.backbone.modules())
        # A module beside the backbone, such as the lm_head, only runs when the whole model does.
        self.entry = decoder.backbone if all(tap.module in inside for tap in self.taps.values()) else loaded.model
        self.last, self.n_needed, self.example = self._trace()

    def cut(self) -> None:
        """Drops the blocks that no pass enters. The model cannot be used for anything else afterwards."""
        if self.entry is self.loaded.decoder.backbone:
            del self.loaded.decoder.blocks[self.n_needed :]

    @torch.inference_mode()
    def read(
        self,
        ids: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        *,
        before: torch.Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> dict[str, torch.Tensor]:
        """One pass over a right-padded batch.

        ids [batch, longest]; lengths [batch]; rows int64 [k], flat indices (batch row times longest plus position)
        of the tokens to keep; `before` those of the tokens that predict them, for FINAL. With a prefix, ids,
        lengths and rows are of what follows it. Gives site -> [k, width…], copies of their own, in order of `rows`.
        """
        state = _Pass(shape=(ids.shape[0], ids.shape[1]), rows=rows, before=before, stop_at=self.last)
        past = None if prefix is None else repeated(prefix.cache, len(ids))
        self._run(inputs_of(self.entry, ids, lengths, past=past, offset=prefix.length if prefix else 0), state)
        return state.found

    @torch.inference_mode()
    def read_prefix(self, ids: torch.Tensor) -> Prefix:
        """Runs [length] tokens once, for all prompts that begin with them."""
        length = len(ids)
        rows = torch.arange(length, device=ids.device)
        state = _Pass(shape=(1, length), rows=rows, before=rows, stop_at=self.last)
        inputs = inputs_of(self.entry, ids[None], [length], keep_cache=True, config=self.loaded.decoder.config)
        self._run(inputs, state)
        return Prefix(length=length, found=state.found, cache=inputs["past_key_values"])

    @property
    def can_share(self) -> bool:
        """True where going on from a prefix's cache gives what one pass over all tokens gives."""
        if not takes_prefix(self.entry):
            return False
        ids = torch.arange(4, device=self.loaded.device)
        rows = torch.arange(2, device=self.loaded.device)
        whole = self.read(ids[None], [4], rows + 2, before=rows + 2)
        after = self.read(ids[None, 2:], [2], rows, before=rows, prefix=self.read_prefix(ids[:2]))
        return all(
            torch.linalg.vector_norm(after[site].float() - values.float())
            <= SAME * torch.linalg.vector_norm(values.float())
            for site, values in whole.items()
        )

    def _trace(self) -> tuple[str | None, int, dict[str, torch.Tensor]]:
        """The site reached last, the number of blocks entered until then, and two tokens' activations."""
        device = self.loaded.device
        rows = torch.arange(2, device=device)
        state = _Pass(shape=(1, 2), rows=rows, before=rows, stop_at=None)
        entered: list[int] = []
        reached: list[int] = []
        with ExitStack() as hooks, torch.inference_mode():
            for index, block in enumerate(self.loaded.decoder.blocks):
                hook = block.register_forward_pre_hook(lambda *_, index=index: entered.append(index))
                hooks.callback(hook.remove)
            ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
            self._run(
                inputs_of(self.entry, ids, [2]), state, on_fire=lambda _: reached.append(max(entered, default=-1) + 1)
            )
        for site in self.taps:
            times = state.fired.count(site)
            if times != 1:
                raise InputError(
                    f"site {site} is reached {times} times in one pass of {type(self.loaded.model).__name__}: "
                    "name a module that runs exactly once"
                )
        if not state.fired:
            return None, len(self.loaded.decoder.blocks), {}
        return state.fired[-1], reached[-1], state.found

    def _run(self, inputs: dict[str, Any], state: _Pass, on_fire: Callable[[str], None] = lambda site: None) -> None:
        with ExitStack() as hooks:
            for site, tap in self.taps.items():
                hooks.callback(_attach(site, tap, state, on_fire).remove)
            with suppress(_Enough):
                self.entry(**inputs)


def _attach(site: str, tap: Tap, state: _Pass, on_fire: Callable[[str], None]) -> Any:
    def keep(value: Any) -> None:
        state.fired.append(site)
        on_fire(site)
        state.found[site] = _rows(tensor_of(value), tap, state, site)
        if site == state.stop_at:
            raise _Enough

    if tap.side == "in":
        return tap.module.register_forward_pre_hook(
            lambda _, args, kwargs: keep(args if args else kwargs), with_kwargs=True
        )
    return tap.module.register_forward_hook(lambda _, args, output: keep(output))


def _rows(value: torch.Tensor, tap: Tap, state: _Pass, site: str) -> torch.Tensor:
    """[k, width…]: the kept tokens of what a module takes or gives, for the whole batch or flat over its tokens."""
    batch, longest = state.shape
    if value.ndim >= 3 and value.shape[:2] == (batch, longest):
        flat = value.flatten(0, 1)
    elif value.ndim >= 2 and value.shape[0] == batch * longest:
        flat = value
    else:
        raise InputError(
            f"site {site} gives a tensor of shape {tuple(value.shape)} for {batch} prompts of {longest} tokens: "
            "only modules with one row per token can be harvested"
        )
    rows = state.before if site == FINAL and state.before is not None else state.rows
    kept = flat.index_select(0, rows)  # a copy: the module's own buffer may be used again
    if tap.split:
        kept = kept.unflatten(-1, (tap.split, -1))
        return kept if tap.head is None else kept[:, tap.head].clone()
    return kept
