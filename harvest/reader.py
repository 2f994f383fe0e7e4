"""Reads sites while the model runs: hooks, early stop, shared prefixes, and the cut after the last needed block.

A first run on two tokens, before anything is harvested, shows which hooks fire, in which order and how often. From
it follow the site that is reached last, where every later run stops, and the blocks that are never entered, which
are dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harvest.architecture import Tap, tensor_of
from harvest.head import Head
from harvest.inputs import inputs_of, repeated, takes_prefix
from harvest.layout import Layout, kept_rows
from harvest.loading import LoadedModel
from harvest.packing import attention_configs, can_pack, packed_backend
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

    layout  of the tokens in the batch
    rows    flat indices [k] of the kept tokens in the batch
    before  the same for the tokens before them, which predict them
    """

    layout: Layout
    rows: torch.Tensor
    before: torch.Tensor
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
        self.configs = attention_configs(loaded.model)
        self.last: str | None = None
        self.last, self.n_needed, self.example = self._trace()

    def cut(self) -> None:
        """Drops the blocks that no pass enters. The model cannot be used for anything else afterwards."""
        if self.entry is self.loaded.decoder.backbone:
            del self.loaded.decoder.blocks[self.n_needed :]

    @torch.inference_mode()
    def read(
        self,
        prompts: Sequence[np.ndarray],
        keep: Sequence[np.ndarray],
        *,
        prefix: Prefix | None = None,
        packed: bool = False,
    ) -> dict[str, torch.Tensor]:
        """One pass over a batch of prompts.

        prompts  each prompt's tokens, integers [n]
        keep     each prompt's positions to keep, integers, in order
        prefix   what all the prompts begin with; they have more tokens than it
        packed   without padding, where `can_pack`

        Gives site -> [k, width…], copies of their own, prompt by prompt in order of `keep`. FINAL has, for each
        kept token, the row of the token before it, which predicts it; the first token's is its own.
        """
        shared = prefix.length if prefix else 0
        layout = Layout(lengths=tuple(len(tokens) - shared for tokens in prompts), packed=packed)
        rows, order = kept_rows(layout, keep, shared)
        earlier, earlier_order = kept_rows(layout, [np.maximum(positions - 1, 0) for positions in keep], shared)
        state = self._pass(layout, rows, earlier)
        past = None if prefix is None else repeated(prefix.cache, layout.shape[0])
        ids = torch.from_numpy(layout.fill([tokens[shared:] for tokens in prompts])).to(self.loaded.device)
        self._run(inputs_of(self.entry, ids, layout, past=past, offset=shared), state)
        if prefix is None:
            return state.found
        # Tokens of the prefix were read once; every prompt gets its own copy of them, at their place.
        return {
            site: torch.cat([prefix.found[site], values]).index_select(
                0, torch.from_numpy(earlier_order if site == FINAL else order).to(values.device)
            )
            for site, values in state.found.items()
        }

    @torch.inference_mode()
    def read_prefix(self, tokens: np.ndarray) -> Prefix:
        """Runs tokens, integers [length], once for all prompts that begin with them."""
        layout = Layout(lengths=(len(tokens),), packed=False)
        rows = np.arange(len(tokens))
        state = self._pass(layout, rows, rows)
        ids = torch.from_numpy(layout.fill([tokens])).to(self.loaded.device)
        inputs = inputs_of(self.entry, ids, layout, keep_cache=True, config=self.loaded.decoder.config)
        self._run(inputs, state)
        return Prefix(length=len(tokens), found=state.found, cache=inputs["past_key_values"])

    @property
    def can_pack(self) -> bool:
        """True where prompts can lie one behind the other without seeing each other."""
        return self.entry is self.loaded.decoder.backbone and can_pack(self.loaded.decoder.config, self.configs)

    @property
    def can_share(self) -> bool:
        """True where going on from a prefix's cache gives what one pass over all tokens gives."""
        if not takes_prefix(self.entry):
            return False
        tokens, keep = np.arange(4), np.arange(2, 4)
        whole = self.read([tokens], [keep])
        after = self.read([tokens], [keep], prefix=self.read_prefix(tokens[:2]))
        return all(
            torch.linalg.vector_norm(after[site].float() - values.float())
            <= SAME * torch.linalg.vector_norm(values.float())
            for site, values in whole.items()
        )

    def _pass(self, layout: Layout, rows: np.ndarray, before: np.ndarray) -> _Pass:
        device = self.loaded.device
        return _Pass(
            layout=layout,
            rows=torch.from_numpy(rows).to(device),
            before=torch.from_numpy(before).to(device),
            stop_at=self.last,
        )

    def _trace(self) -> tuple[str | None, int, dict[str, torch.Tensor]]:
        """The site reached last, the number of blocks entered until then, and two tokens' activations."""
        layout = Layout(lengths=(2,), packed=False)
        state = self._pass(layout, np.arange(2), np.arange(2))
        entered: list[int] = []
        reached: list[int] = []
        with ExitStack() as hooks, torch.inference_mode():
            for index, block in enumerate(self.loaded.decoder.blocks):
                hook = block.register_forward_pre_hook(lambda *_, index=index: entered.append(index))
                hooks.callback(hook.remove)
            ids = torch.zeros((1, 2), dtype=torch.int64, device=self.loaded.device)
            self._run(
                inputs_of(self.entry, ids, layout),
                state,
                on_fire=lambda _: reached.append(max(entered, default=-1) + 1),
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
        with ExitStack() as hooks, packed_backend(self.configs) if state.layout.packed else nullcontext():
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
    batch, longest = state.layout.shape
    if value.ndim >= 3 and value.shape[:2] == (batch, longest):
        flat = value.flatten(0, 1)
    elif value.ndim >= 2 and value.shape[0] == batch * longest:
        flat = value
    else:
        raise InputError(
            f"site {site} gives a tensor of shape {tuple(value.shape)} for {batch} rows of {longest} tokens: "
            "only modules with one row per token can be harvested"
        )
    rows = state.before if site == FINAL else state.rows
    kept = flat.index_select(0, rows)  # a copy: the module's own buffer may be used again
    if tap.split:
        kept = kept.unflatten(-1, (tap.split, -1))
        return kept if tap.head is None else kept[:, tap.head].clone()
    return kept
