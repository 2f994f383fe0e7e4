"""Reads sites while the model runs: hooks, early stop, shared prefixes, and the cut after the last needed block.

First runs on a few tokens, before anything is harvested, show which hooks fire, in which order and how often. From
them follow the site that is reached last, where every later run stops, and the blocks that are never entered, which
are dropped.
"""

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harvest.architecture import Tap, tensor_of
from harvest.head import Head
from harvest.inputs import inputs_of, repeated
from harvest.layout import Layout, kept_rows
from harvest.loading import LoadedModel
from harvest.packing import attention_configs, packed_backend
from store import Site
from store.errors import InputError

# Name under which the final hidden state is read where a sink asks for logits; no site is called that.
FINAL = "@final"
# Tokens of the first runs. A module with as many heads as one of them has tokens shows itself in the other.
TRACED = (2, 3)


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
    entered, needed  in a trace: blocks entered so far, and when the last site was reached
    """

    layout: Layout
    rows: torch.Tensor
    before: torch.Tensor
    stop_at: str | None
    found: dict[str, torch.Tensor] = field(default_factory=dict)
    fired: list[str] = field(default_factory=list)
    entered: int = 0
    needed: int = 0

    def enter(self, block: int, *_: Any) -> None:
        self.entered = max(self.entered, block + 1)


class Reader:
    """Runs token batches and gives the activations at sites.

    sites   what to read
    logits  also read the final hidden state, so that `head` can make logits of it

    Raises InputError where the architecture has no such site, or a site's module runs never or more than once in a
    pass (an activation function that all blocks share, say), or gives no row per token, naming it.
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
        packed   without padding, where `harvest.ways` finds that the model can

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

    def _pass(self, layout: Layout, rows: np.ndarray, before: np.ndarray) -> _Pass:
        device = self.loaded.device
        return _Pass(
            layout=layout,
            rows=torch.from_numpy(rows).to(device),
            before=torch.from_numpy(before).to(device),
            stop_at=self.last,
        )

    def _trace(self) -> tuple[str | None, int, dict[str, torch.Tensor]]:
        """The site reached last, the number of blocks entered until then, and a few tokens' activations."""
        last, needed, found = None, len(self.loaded.decoder.blocks), {}
        for tokens in TRACED:
            layout = Layout(lengths=(tokens,), packed=False)
            state = self._pass(layout, np.arange(tokens), np.arange(tokens))
            with ExitStack() as hooks, torch.inference_mode():
                for index, block in enumerate(self.loaded.decoder.blocks):
                    hooks.callback(block.register_forward_pre_hook(functools.partial(state.enter, index)).remove)
                branches = self._attention_outputs(hooks)
                ids = torch.zeros((1, tokens), dtype=torch.int64, device=self.loaded.device)
                self._run(inputs_of(self.entry, ids, layout), state)
            self._check(state, branches)
            if state.fired:
                last, needed, found = state.fired[-1], state.needed, state.found
        return last, needed, found

    def _attention_outputs(self, hooks: ExitStack) -> dict[str, torch.Tensor]:
        """What the attention of each `resid_mid` site's block gives, filled in by the next run."""
        outputs: dict[str, torch.Tensor] = {}
        for site in self.taps:
            if site.startswith("resid_mid."):
                attention = self.loaded.decoder.attention(int(Site.parse(site).layer or 0))

                def keep(_: Any, __: Any, output: Any, site: str = site) -> None:
                    outputs[site] = tensor_of(output)

                hooks.callback(attention.register_forward_hook(keep).remove)
        return outputs

    def _check(self, state: _Pass, branches: Mapping[str, torch.Tensor]) -> None:
        model = type(self.loaded.model).__name__
        for site in self.taps:
            times = state.fired.count(site)
            if times != 1:
                raise InputError(
                    f"site {site} is reached {times} times in one pass of {model}: name a module that runs exactly once"
                )
        for site, output in branches.items():
            if torch.equal(state.found[site], output.flatten(0, 1).to(state.found[site].device)):
                raise InputError(
                    f"{model} has no place {site} that thresher knows: the norm found there is of the attention's "
                    "output. Name the module instead, as module:dotted.path@in"
                )

    def _run(self, inputs: dict[str, Any], state: _Pass) -> None:
        with ExitStack() as hooks, packed_backend(self.configs) if state.layout.packed else nullcontext():
            for site, tap in self.taps.items():
                hooks.callback(_attach(site, tap, state).remove)
            with suppress(_Enough):
                self.entry(**inputs)


def _attach(site: str, tap: Tap, state: _Pass) -> Any:
    def keep(value: Any) -> None:
        state.fired.append(site)
        state.needed = state.entered
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
    # A copy: the module's own buffer may be used again. A model spread over devices has its rows together on the first.
    kept = flat.index_select(0, rows.to(flat.device)).to(rows.device)
    if tap.split:
        kept = kept.unflatten(-1, (tap.split, -1))
        return kept if tap.head is None else kept[:, tap.head].clone()
    return kept
