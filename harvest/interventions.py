"""Writing to sites while a model runs: adding a vector, projecting directions out, holding a coordinate."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from harvest.architecture import Tap
from harvest.condition import Condition, Gate, watch
from harvest.loading import LoadedModel
from store import Site
from store.digest import digest_array
from store.errors import InputError

KINDS = ("add", "ablate", "clamp")


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A change to the activations x [tokens, width] of one site, at every token of prompt and response that `intervene`
    lets it have.

    kind     add: x + amount · v.  ablate: x without its component in the span of the vectors.
             clamp: x with its coordinate along v / ‖v‖ set to `amount`
    vectors  float32 [width] or, for ablate, [k, width]; neither need be of length 1
    amount   of add and clamp; a multiple of v as it is given (add), or a coordinate (clamp)

    Raises InputError for another kind, and for a vector that is zero or not finite.
    """

    site: str
    kind: str
    vectors: np.ndarray
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown intervention {self.kind!r}: use one of {', '.join(KINDS)}")
        vectors = np.atleast_2d(np.asarray(self.vectors, np.float32))
        if not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=1).all():
            raise InputError(f"a direction at {self.site} is zero or not finite: it points nowhere")
        if self.kind != "ablate" and len(vectors) > 1:
            raise InputError(f"{self.kind} at {self.site} takes one vector, not {len(vectors)}")
        object.__setattr__(self, "vectors", vectors)

    def record(self) -> dict[str, Any]:
        """JSON of what it does, the vectors as a digest of their float32 bytes."""
        return {"site": self.site, "kind": self.kind, "amount": self.amount, "vectors": digest_array(self.vectors)}

    def control(self, generator: np.random.Generator) -> "Intervention":
        """The same change along random directions: as many, of the same norms, isotropic (normal) otherwise."""
        drawn = generator.standard_normal(self.vectors.shape)
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return replace(self, vectors=drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * norms)


@contextmanager
def intervene(
    loaded: LoadedModel, interventions: Sequence[Intervention], *, once: Condition | None = None
) -> Iterator[Gate]:
    """The model with its sites written to, for as long as the context lasts; in the order given at one site.

    With `once`, only where a prompt has fired (see `harvest.condition`), and passes run through the gate that is given.
    Raises InputError for a site the model does not have, and a vector of another width when it first runs.
    """
    gate = Gate(once)
    with ExitStack() as hooks:
        # Before the changes, whose hooks run behind these at the same module: a token is scored as it came.
        hooks.enter_context(watch(loaded, gate))
        for intervention in interventions:
            tap = loaded.decoder.tap(Site.parse(intervention.site))
            hooks.callback(_attach(tap, _Change(intervention), gate).remove)
        yield gate


class _Change:
    """The arithmetic of one intervention, in float32 on the activations' device."""

    def __init__(self, intervention: Intervention) -> None:
        self.intervention = intervention
        vectors = torch.from_numpy(intervention.vectors)
        if intervention.kind == "ablate":
            # An orthonormal basis of the span, whatever the vectors' angles; rank by the singular values.
            _, sizes, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
            vectors = basis[sizes > sizes[0] * 1e-6].float()
        elif intervention.kind == "clamp":
            vectors = vectors / torch.linalg.vector_norm(vectors)
        self.vectors = vectors

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.vectors = self.vectors.to(x.device)
        if x.shape[-1] != self.vectors.shape[-1]:
            raise InputError(
                f"the direction for {self.intervention.site} has width {self.vectors.shape[-1]}, the site "
                f"{x.shape[-1]}: it was made for another model or site"
            )
        values = x.float()
        if self.intervention.kind == "add":
            changed = values + self.intervention.amount * self.vectors[0]
        elif self.intervention.kind == "ablate":
            changed = values - (values @ self.vectors.T) @ self.vectors
        else:
            direction = self.vectors[0]
            changed = values + (self.intervention.amount - values @ direction)[..., None] * direction
        return changed.to(x.dtype)


def _attach(tap: Tap, change: _Change, gate: Gate) -> Any:
    def write(x: torch.Tensor) -> torch.Tensor:
        if tap.head is None:
            return gate.chosen(change(x), x)
        heads = x.unflatten(-1, (tap.split, -1)).clone()
        heads[..., tap.head, :] = change(heads[..., tap.head, :])
        return gate.chosen(heads.flatten(-2), x)

    if tap.side == "in":
        return tap.module.register_forward_pre_hook(
            lambda _, args, kwargs: _first_changed(args, kwargs, write), with_kwargs=True
        )
    return tap.module.register_forward_hook(lambda _, args, output: _output_changed(output, write))


def _first_changed(args: tuple[Any, ...], kwargs: dict[str, Any], write: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (write(args[0]), *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
    return args, {**kwargs, name: write(kwargs[name])}


def _output_changed(output: Any, write: Any) -> Any:
    return (write(output[0]), *output[1:]) if isinstance(output, tuple) else write(output)
