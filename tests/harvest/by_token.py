"""A prompt run token by token on plain transformers, its blocks changed once it has fired, by hooks written by hand."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from harvest import Intervention

RNG = np.random.default_rng(5)
PROBES, PUSHES = RNG.normal(size=(2, 3, 32)).astype(np.float32)
CENTRE, SPREAD = RNG.normal(size=(3, 2)), RNG.uniform(0.5, 2, size=(3, 2))
AT = ("resid_post.1", "mlp_in.2", "resid_post.1")
# Before, at and behind the places where tokens are scored.
CHANGES = [
    Intervention(site="resid_post.0", kind="add", vectors=PUSHES[0], amount=3.0),
    Intervention(site="resid_post.1", kind="add", vectors=PUSHES[1], amount=-2.0),
    Intervention(site="resid_post.3", kind="ablate", vectors=PUSHES[:2]),
]


def without(x: torch.Tensor, vectors: np.ndarray) -> torch.Tensor:
    basis = torch.linalg.qr(torch.from_numpy(vectors).T.double())[0]
    return (x.double() - x.double() @ basis @ basis.T).float()


class ByToken:
    """One conversation, a token a pass. `always` changes all tokens; otherwise once a token has scored enough."""

    def __init__(self, plain: Any, scoring: str, threshold: float, *, always: bool = False) -> None:
        self.model, self.scoring, self.threshold, self.always = plain, scoring, threshold, always
        self.cache, self.fired, self.tokens, self.largest = DynamicCache(), always, 0, -np.inf

    def score(self, x: torch.Tensor, places: list[int]) -> None:
        if self.tokens == 0:
            return
        x64 = x[0, 0].double().numpy()
        for place in places:
            probe = PROBES[place].astype(np.float64)
            raw = float(x64 @ probe) / np.linalg.norm(probe)
            raw /= np.linalg.norm(x64) if self.scoring == "cosine" else 1.0
            for side, signed in enumerate((raw, -raw)):
                standard = (signed - CENTRE[place, side]) / SPREAD[place, side]
                self.largest = max(self.largest, standard)
                self.fired = self.fired or standard > self.threshold

    def block(self, number: int, _: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        if number == 1:
            self.score(output, [0, 2])
        if not self.fired:
            return output
        if number == 0:
            return output + 3.0 * torch.from_numpy(PUSHES[0])
        if number == 1:
            return output - 2.0 * torch.from_numpy(PUSHES[1])
        return without(output, PUSHES[:2]) if number == 3 else output

    @torch.no_grad()
    def run(self, token: int) -> torch.Tensor:
        """Log-probabilities [vocabulary] of what follows `token`."""
        layers = self.model.model.layers
        hooks = [layer.register_forward_hook(partial(self.block, number)) for number, layer in enumerate(layers)]
        hooks.append(layers[2].post_attention_layernorm.register_forward_hook(lambda _, __, out: self.score(out, [1])))
        try:
            logits = self.model(torch.tensor([[token]]), past_key_values=self.cache, use_cache=True).logits[0, -1]
        finally:
            for hook in hooks:
                hook.remove()
        self.tokens += 1
        return torch.log_softmax(logits, -1)

    def answer(self, ids: np.ndarray, n: int) -> tuple[tuple[int, ...], bool]:
        logs = [self.run(int(token)) for token in ids][-1]
        found: list[int] = []
        while (token := int(logs.argmax())) != 1:
            found.append(token)
            if len(found) == n:
                break
            logs = self.run(token)
        return tuple(found), self.fired

    def logprobs(self, ids: np.ndarray) -> list[float]:
        """Of every token but the first."""
        return [float(self.run(int(token))[int(after)]) for token, after in pairwise(ids)]
