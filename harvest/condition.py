"""Changing a prompt only once it has fired: the rule, and the gate that interventions ask while a model runs.

What "once" means is said for one token at a time, as if a prompt were run token by token with a cache: token t at site
s is changed if a token before t has fired at any site, or t itself at a site that its pass reached at or before s. A
token is scored before it is changed. So what a prompt and its response get does not depend on how they are cut into
passes, and a conversation that is encoded whole at every turn has fired exactly where it fired before.

A pass over many tokens finds that out in two: what lies before the first token that fires is as it would be without
any change, so the first pass finds that token, and the second, which is only run where a prompt has fired before its
end, changes all that follows it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from harvest.architecture import Tap, tensor_of
from harvest.encoding import EncodedPrompt
from harvest.loading import LoadedModel
from store import Site
from store.digest import digest_array
from store.errors import InputError
from store.sink import ROLES, scored_from

SCORINGS = ("cosine", "projection")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """When a prompt has fired: a token's standardised score along one of k directions is above a threshold.

    sites      k of them: where each direction is scored
    vectors    float32 [width] each; only where they point to counts
    scoring    `cosine` of the activation with the direction, or `projection` on it
    centre     float64 [k, 2 r], subtracted from the score (at 2 j) and from its negative (at 2 j + 1) of tokens of the
               j-th role
    spread     float64 [k, 2 r], divides the rest
    threshold  in units of the spread
    roles      r of them: `("all",)`, or names of ROLES; tokens of no other role fire
    prefix     leading tokens that do not fire where a prompt begins with them; the first token does not either, the
               last of a prompt always may. None: every token may

    A score that is not finite does not fire. Raises InputError for an unknown scoring and a vector that points
    nowhere.
    """

    sites: tuple[str, ...]
    vectors: tuple[np.ndarray, ...]
    scoring: str
    centre: np.ndarray
    spread: np.ndarray
    threshold: float
    roles: tuple[str, ...] = ("all",)
    prefix: tuple[int, ...] | None = ()

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise InputError(f"a condition scores by {' or '.join(SCORINGS)}, not by {self.scoring!r}")
        for site, vector in zip(self.sites, self.vectors, strict=True):
            if not np.isfinite(vector).all() or not vector.any():
                raise InputError(f"a direction at {site} is zero or not finite: it points nowhere")

    def pools(self, prompt: EncodedPrompt) -> np.ndarray:
        """int64 [n]: place of each token's role in `roles`; −1 for tokens that cannot fire."""
        pools = np.array([self.pool_of(ROLES[code]) for code in prompt.role], np.int64)
        pools[: scored_from(prompt.ids, np.arange(len(prompt)), self.prefix)] = -1
        return pools

    def pool_of(self, role: str) -> int:
        """Place of a role in `roles`, −1 where its tokens cannot fire."""
        if self.roles == ("all",):
            return 0
        return self.roles.index(role) if role in self.roles else -1

    def record(self) -> dict[str, Any]:
        """JSON of what decides who fires, arrays as digests."""
        return {
            "sites": list(self.sites),
            "vectors": [digest_array(np.asarray(vector, np.float32)) for vector in self.vectors],
            "scoring": self.scoring,
            "centre": digest_array(np.asarray(self.centre, np.float64)),
            "spread": digest_array(np.asarray(self.spread, np.float64)),
            "threshold": self.threshold,
            "roles": list(self.roles),
            "prefix": None if self.prefix is None else list(self.prefix),
        }


class Gate:
    """Which tokens of a batch are changed. Without a condition it is always open, and passes run as they are.

    `prompts` begins a batch, `step` goes on with it. Tensors: `pools` int64 [rows, tokens], see `Condition.pools`, −1
    where padding is.
    """

    def __init__(self, condition: Condition | None) -> None:
        self.condition = condition
        self._fired = self._before = self._pools = self._since = torch.zeros(0)

    @property
    def tokens(self) -> int:
        """Of the pass that runs, padding included."""
        return self._pools.numel()

    @property
    def fired(self) -> list[bool]:
        """Of each row of the batch, whether it has fired up to now."""
        return [bool(row) for row in self._fired]

    def prompts(self, pools: torch.Tensor, forward: Callable[[], T]) -> T:
        """The result of `forward`, a pass over whole prompts that makes its cache anew each time it is called."""
        if self.condition is None:
            return forward()
        result = self._run(pools, torch.zeros_like(pools, dtype=torch.bool), forward)
        found = self._since
        if found[:, :-1].any():
            behind = torch.zeros_like(found)
            behind[:, 1:] = found[:, :-1].cummax(dim=1).values
            result = self._run(pools, behind, forward)
        self._fired = found.any(dim=1)
        return result

    def step(self, pools: torch.Tensor, forward: Callable[[], T]) -> T:
        """The result of `forward`, a pass over one more token of each row; `pools` [rows, 1]."""
        if self.condition is None:
            return forward()
        result = self._run(pools, self._fired[:, None], forward)
        self._fired = self._fired | self._since.any(dim=1)
        return result

    def _run(self, pools: torch.Tensor, before: torch.Tensor, forward: Callable[[], T]) -> T:
        self._pools, self._before, self._since = pools, before, torch.zeros_like(before)
        return forward()

    def see(self, scores: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor) -> None:
        """Scores [rows · tokens, k] of k directions at one site, with their scale [k, 2 r]."""
        assert self.condition is not None
        pools = self._pools.flatten().to(scores.device)
        pool = pools.clamp(min=0)
        above = torch.zeros_like(pools, dtype=torch.bool)
        for side, signed in enumerate((scores, -scores)):
            column = 2 * pool + side
            standard = (signed.double() - centre[:, column].T) / spread[:, column].T
            above |= ((standard > self.condition.threshold) & standard.isfinite()).any(dim=1)
        above &= pools >= 0
        self._since |= above.reshape(self._since.shape).to(self._since.device)

    def chosen(self, changed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`changed` where the gate is open, `x` where it is not; both [rows, tokens, width] or flat over tokens."""
        if self.condition is None:
            return changed
        open_ = (self._before | self._since).to(x.device)
        return torch.where(open_.reshape(x.shape[:-1])[..., None], changed, x)


@contextmanager
def watch(loaded: LoadedModel, gate: Gate) -> Iterator[None]:
    """The gate sees the scores of every pass. Raises InputError for a site the model does not have, and for a vector
    of another width when it first runs."""
    condition = gate.condition
    with ExitStack() as hooks:
        for site in dict.fromkeys(condition.sites if condition is not None else ()):
            hooks.callback(_attach(loaded.decoder.tap(Site.parse(site)), _Score(gate, site)).remove)
        yield


class _Score:
    """The scores at one site, in float32 on the activations' device, standardised in float64."""

    def __init__(self, gate: Gate, site: str) -> None:
        assert gate.condition is not None
        condition = gate.condition
        places = [place for place, own in enumerate(condition.sites) if own == site]
        vectors = torch.from_numpy(np.stack([np.asarray(condition.vectors[place], np.float32) for place in places]))
        self.gate, self.site, self.cosine = gate, site, condition.scoring == "cosine"
        self.vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        self.centre, self.spread = (
            torch.from_numpy(np.asarray(scale, np.float64)[places]) for scale in (condition.centre, condition.spread)
        )

    def __call__(self, x: torch.Tensor) -> None:
        rows = x.reshape(self.gate.tokens, -1).float()
        if rows.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"the condition's direction at {self.site} has width {self.vectors.shape[1]}, the site "
                f"{rows.shape[1]}: it was made for another model or site"
            )
        self.vectors, self.centre, self.spread = (
            part.to(rows.device) for part in (self.vectors, self.centre, self.spread)
        )
        scores = rows @ self.vectors.T
        if self.cosine:
            scores = scores / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
        self.gate.see(scores, self.centre, self.spread)


def _attach(tap: Tap, score: _Score) -> Any:
    def see(value: Any) -> None:
        x = tensor_of(value)
        score(x if tap.head is None else x.unflatten(-1, (tap.split, -1))[..., tap.head, :])

    if tap.side == "in":
        return tap.module.register_forward_pre_hook(
            lambda _, args, kwargs: see(args if args else kwargs), with_kwargs=True
        )
    return tap.module.register_forward_hook(lambda _, args, output: see(output))


def padded_pools(
    condition: Condition | None, prompts: Sequence[EncodedPrompt], *, width: int, left: bool
) -> torch.Tensor:
    """int64 [prompts, width]: what each token's pool is, prompts padded on the left or on the right."""
    pools = torch.full((len(prompts), width), -1)
    if condition is not None:
        for row, prompt in enumerate(prompts):
            start = width - len(prompt) if left else 0
            pools[row, start : start + len(prompt)] = torch.from_numpy(condition.pools(prompt))
    return pools
