"""Which tokens of a prompt are kept, and how they become one row where that is asked.

Reductions run in float32 on the model's device, over the selected tokens of one prompt in order of position.
"""

from collections.abc import Sequence

import numpy as np
import torch

from harvest.encoding import EncodedPrompt, check_role
from store.errors import InputError
from store.sink import ROLES

DEFAULT_ALPHA = 0.1


def selected_tokens(prompt: EncodedPrompt, tokens: str) -> np.ndarray:
    """Bool [n]: the tokens that a selection keeps.

    `all`; `last`; `response`; `span`; `every:k`, positions 0, k, 2k …; `role:name`. Raises InputError naming the
    prompt where `response` or `span` keeps none, and for a role that no token can have.
    """
    n = len(prompt)
    kind, _, argument = tokens.partition(":")
    keep = np.zeros(n, bool)
    if kind == "all":
        keep[:] = True
    elif kind == "last":
        keep[-1] = True
    elif kind == "every":
        keep[:: int(argument)] = True
    elif kind == "role":
        check_role(tokens)
        keep = prompt.role == ROLES.index(argument)
    else:
        keep = prompt.response if kind == "response" else prompt.span
        if not keep.any():
            missing = "has no response" if kind == "response" else "has no span"
            raise InputError(
                f"prompt {prompt.prompt_id!r} {missing} (or it was cut off), and tokens={kind} was asked: "
                f"give every prompt one, or choose other tokens"
            )
    return keep


def parse_reduction(reduce: str) -> tuple[str, float]:
    """Name and, for `ema`, its alpha (0.1 where none is given)."""
    name, _, alpha = reduce.partition(":")
    return name, float(alpha) if alpha else DEFAULT_ALPHA


def reduce_rows(rows: torch.Tensor, counts: Sequence[int], reduce: str) -> torch.Tensor:
    """One row per prompt from [sum(counts), width…], whose rows of one prompt are consecutive; float32.

    ema   e_0 = x_0, e_t = alpha x_t + (1 - alpha) e_(t-1); the last e is kept
    A prompt with no selected token gives a row of NaN.
    """
    name, alpha = parse_reduction(reduce)
    reduced = rows.new_full((len(counts), *rows.shape[1:]), float("nan"), dtype=torch.float32)
    for prompt, part in enumerate(torch.split(rows, list(counts))):
        if not len(part):
            continue
        values = part.float()
        if name == "mean":
            reduced[prompt] = values.mean(0)
        elif name == "max":
            reduced[prompt] = values.amax(0)
        elif name == "last":
            reduced[prompt] = values[-1]
        else:
            reduced[prompt] = torch.tensordot(_ema_weights(len(values), alpha, values), values, dims=1)
    return reduced


def _ema_weights(n: int, alpha: float, like: torch.Tensor) -> torch.Tensor:
    """[n] weights of the closed form of the recursion; they sum to 1."""
    age = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    weights = alpha * (1.0 - alpha) ** age
    weights[0] = (1.0 - alpha) ** (n - 1)
    return weights.to(like)
